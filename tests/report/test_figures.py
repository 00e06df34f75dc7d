from collections.abc import Callable
from dataclasses import replace
from statistics import stdev

import pytest

from octnas.report.data import Latencies, ReportData, Timing
from octnas.report.figures import (
    alpha_figure,
    front_figure,
    hypervolume_figure,
    hypervolumes_so_far,
    retrained_figure,
    training_figure,
)
from octnas.results.front import Front
from octnas.space.costs import Bound, Budget

Make = Callable[..., ReportData]


def test_front_figure_has_a_series_for_each_kind(full: ReportData) -> None:
    figure = front_figure(full)
    assert figure is not None
    series = {trace.name: trace for trace in figure.data}
    assert set(series) == {"candidate", "front", "uniform α", "chosen"}
    origins = [candidate.origin for candidate in full.candidates]
    assert len(series["uniform α"].x) == origins.count("uniform")
    assert len(series["candidate"].x) == len(origins) - origins.count("uniform")
    assert list(series["front"].x) == [one.macs for one in full.front.candidates]
    hover = series["chosen"].hovertext[0]
    chosen = full.chosen["half"]
    assert chosen.id in hover
    assert "stem 0 · body 0.5" in hover


def test_every_budget_has_a_label_of_its_own_height(full: ReportData) -> None:
    macs = [one.macs for one in full.candidates]
    budgets = tuple(Budget(f"at {share}", int(share * max(macs))) for share in (0.5, 0.52, 0.54))
    figure = front_figure(replace(full, budgets=budgets))
    assert figure is not None
    labels = figure.layout.annotations
    assert {label.text for label in labels} == {"≤ at 0.5", "≤ at 0.52", "≤ at 0.54"}
    assert len({label.yshift for label in labels}) == len(budgets)
    assert len({label.xanchor for label in labels}) == 1


def test_retrained_figure_shows_mean_and_std_in_percent(full: ReportData) -> None:
    figure = retrained_figure(full)
    assert figure is not None
    assert [trace.name for trace in figure.data] == ["searched", "uniform", "increasing", "vanilla"]
    assert figure.data[0].y[0] == pytest.approx(82.0)
    assert figure.data[0].error_y.array[0] == pytest.approx(100 * stdev((0.80, 0.82, 0.84)))


def test_alpha_figure_has_a_row_for_each_network_and_a_column_for_each_site(
    full: ReportData,
) -> None:
    figure = alpha_figure(full)
    assert figure is not None
    (heat,) = figure.data
    assert list(figure.layout.yaxis.ticktext) == [
        "searched<br>half",
        "uniform<br>half",
        "increasing<br>half",
        "vanilla",
    ]
    assert [list(row) for row in heat.z] == [[0, 0.5, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]
    assert heat.hovertext[0][1].endswith("16 of 32 channels at half resolution")
    assert list(figure.layout.xaxis.ticktext) == ["stem", "body", "head"]


def test_training_figure_averages_over_seeds(full: ReportData) -> None:
    figure = training_figure(full)
    assert figure is not None
    losses = {trace.name: list(trace.y) for trace in figure.data}
    assert losses["supernet"] == [2.0]
    assert losses["searched, half"] == [2.0 / 1 + (0 + 1 + 2) / 3, 2.0 / 2 + (0 + 1 + 2) / 3]


def test_the_front_can_be_drawn_over_what_is_known(full: ReportData) -> None:
    one = full.retrained[0].network
    known = Latencies(
        "phone & co", "eager", "float32", 1, 1, {one.architecture.id: Timing(0.002, 0.003)}
    )
    figure = retrained_figure(replace(full, latencies=(known,)))
    assert figure is not None
    axes = figure.layout.meta["axes"]
    assert list(axes) == ["macs", "activation", "measured0"]
    assert [list(trace.x) for trace in figure.data] == axes["macs"]["x"]
    assert axes["activation"]["x"][0] == [one.cost.activation_bytes]
    assert axes["measured0"]["x"] == [[2.0], [None], [None], [None]]
    assert "ms measured on phone &amp; co" in axes["measured0"]["title"]
    # A budget on MACs is no line over anything else.
    assert len(axes["macs"]["annotations"]) == len(full.budgets)
    assert axes["activation"]["shapes"] == []
    assert figure.data[0].customdata[0] == one.architecture.id


def test_a_budget_on_memory_is_a_line_over_memory(full: ReportData) -> None:
    bound = Budget("small", 10**6, bound=Bound("activation", 5000, 1000))
    figure = front_figure(replace(full, budgets=(bound,)))
    assert figure is not None
    shapes = figure.layout.meta["axes"]["activation"]["shapes"]
    assert {shape["x0"] for shape in shapes} == {5000, 1000}


def test_the_hypervolume_is_that_of_the_front_so_far(full: ReportData) -> None:
    areas = hypervolumes_so_far(full, full.candidates)
    worst = max(one.loss for one in full.candidates)
    reference = (float(full.budgets[0].max_macs), worst)
    for count, area in enumerate(areas, start=1):
        assert area == Front.of(full.candidates[:count]).hypervolume(reference)
    assert areas == sorted(areas)
    assert areas[-1] > 0
    figure = hypervolume_figure(full)
    assert figure is not None
    assert figure.data[0].y[-1] == 1


def test_nothing_to_draw_is_no_figure(make_data: Make) -> None:
    bare = replace(
        make_data(), candidates=(), front=Front(()), chosen={}, supernet_history=(), budgets=()
    )
    assert front_figure(bare) is None
    assert retrained_figure(bare) is None
    assert alpha_figure(bare) is None
    assert training_figure(bare) is None
    assert hypervolume_figure(bare) is None


def test_the_original_is_a_point_of_its_own(tuned: ReportData) -> None:
    figure = retrained_figure(tuned)
    assert figure is not None
    *_, vanilla, original = figure.data
    assert (vanilla.name, original.name) == ("vanilla (the original fine-tuned)", "your network")
    assert (original.x[0], original.y[0]) == (vanilla.x[0], pytest.approx(83.0))
    assert original.marker.symbol not in {trace.marker.symbol for trace in figure.data[:-1]}
    assert "seed" not in original.hovertext[0]
