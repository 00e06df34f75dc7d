import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.report.data import ReportData
from octnas.report.figures import ranking_figure
from octnas.report.page import page, write_ranking_page
from octnas.report.ranking import COLUMNS, ranking_rows, ranking_text, write_ranking_csv
from octnas.results.ranking import Interval, Ranked, Ranking, regrets, statistics
from octnas.space.costs import Budget
from tests.report.test_page import ATTACK, Page

Make = Callable[..., ReportData]


def ranking(count: int = 8, seeds: int = 3, narrow: int = 3, identity: str = "") -> Ranking:
    entries = tuple(
        Ranked(
            identity or f"{number:012x}",
            {"stem": 0.5, "body": 1.0},
            1_000_000 * (number + 1),
            number < narrow,
            # All but the last two fall as the truth rises.
            (2.0 - 0.1 * number) if number < count - 2 else 2.0 + 0.1 * number,
            0.5 + 0.01 * number,
            tuple(0.6 + 0.02 * number + 0.01 * seed for seed in range(seeds)),
        )
        for number in range(count)
    )
    return Ranking(
        entries,
        statistics(entries, resamples=10),
        regrets(entries, [Budget("half", 4_000_000), Budget("all", 99_000_000)]),
        {"score": 61.0, "scoring": 2.5, "truth": 1234.0},
        8,
    )


@pytest.fixture(scope="module")
def rankings() -> Mapping[str, Ranking]:
    return {"supernet": ranking(), "other": ranking(), "both": ranking()}


def test_figure(rankings: Mapping[str, Ranking]) -> None:
    figure = ranking_figure(rankings)
    assert figure is not None
    spread, narrow = figure.data
    assert (spread.name, narrow.name) == ("spread over MACs", "nearly equal MACs")
    assert (len(spread.x), len(narrow.x)) == (5, 3)
    assert list(narrow.x) == pytest.approx([2.0, 1.9, 1.8])
    assert list(narrow.y) == pytest.approx([61, 63, 65])
    assert list(narrow.error_y.array) == pytest.approx([1, 1, 1])
    assert list(narrow.marker.color) == [1_000_000, 2_000_000, 3_000_000]
    assert narrow.marker.symbol != spread.marker.symbol
    assert "61.0 ± 1.0 % from scratch, 3 seeds" in narrow.hovertext[0]
    assert "1.000 M MACs" in narrow.hovertext[0]
    assert "stem 0.5 · body 1" in narrow.hovertext[0]


def test_figure_without_slice_or_spread() -> None:
    figure = ranking_figure({"supernet": ranking(seeds=1, narrow=0)})
    assert figure is not None
    (spread,) = figure.data
    assert set(spread.error_y.array) == {0}
    assert "60.0 % from scratch, 1 seed<br>" in spread.hovertext[0]


def test_nothing_to_draw_is_no_figure() -> None:
    assert ranking_figure({}) is None


def test_a_report_without_a_ranking_check_has_no_section(full: ReportData) -> None:
    assert "Do the scores rank" not in Page(page(full)).text("h2")


def test_section_of_the_page(full: ReportData, rankings: Mapping[str, Ranking]) -> None:
    parsed = Page(page(replace(full, rankings=rankings)))
    assert parsed.open == []
    plots = [attrs["id"] for _, attrs in parsed.elements if attrs.get("class") == "plot"]
    assert plots == ["retrained", "front", "hypervolume", "ranking", "training"]
    assert len(parsed.figures()) == len(plots)
    assert "Do the scores rank?" in parsed.text("h2")
    paragraphs = parsed.text("p")
    assert "8 architectures, 3 of them at nearly equal MACs" in paragraphs
    assert "noise ceiling" in paragraphs
    assert "Colour is MACs" in parsed.text("figcaption")
    heads, cells = parsed.text("th"), parsed.text("td")
    for name, value, _ in ranking_rows(rankings["supernet"]):
        assert name in heads
        assert value.replace("-", "−") in cells
    for source in rankings:
        assert f"scores of {source}" in heads


def test_minus_signs_and_intervals(full: ReportData, rankings: Mapping[str, Ranking]) -> None:
    one = rankings["supernet"].statistics["gain"]
    assert one.value is not None
    assert one.low is not None
    assert one.high is not None
    assert one.value < 0
    cells = Page(page(replace(full, rankings=rankings))).text("td")
    expected = f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})".replace("-", "−")
    assert expected in cells


def test_there_is_no_negative_zero(full: ReportData) -> None:
    one = ranking()
    found = {**one.statistics, "tau_loss": Interval(-0.001, -0.004, -0.0)}
    rows = {name: rest for name, *rest in ranking_rows(replace(one, statistics=found))}
    assert rows["τ of the loss"] == ["0.00", "0.00 to 0.00"]


def test_sources_of_different_figures_stay_in_their_columns(full: ReportData) -> None:
    uneven = {"supernet": ranking(narrow=0), "other": ranking(narrow=3)}
    assert "–" in Page(page(replace(full, rankings=uneven))).text("td")


def test_names_cannot_become_markup(full: ReportData) -> None:
    bad = replace(full, rankings={"supernet": ranking(identity=ATTACK)})
    parsed = Page(page(bad))
    benign = Page(page(replace(full, rankings={"supernet": ranking()})))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in benign.elements]


def test_a_page_of_its_own_needs_nothing_else(
    rankings: Mapping[str, Ranking], tmp_path: Path
) -> None:
    write_ranking_page("by hand & co", rankings, tmp_path / "ranking.html")
    parsed = Page((tmp_path / "ranking.html").read_text(encoding="utf-8"))
    assert parsed.open == []
    assert len(parsed.figures()) == 1
    assert parsed.text("h1") == "by hand & co"
    for _, attrs in parsed.elements:
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "data:").startswith("data:")


def test_csv_holds_every_figure_in_full(rankings: Mapping[str, Ranking], tmp_path: Path) -> None:
    write_ranking_csv(rankings, tmp_path / "ranking.csv")
    with (tmp_path / "ranking.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    one = rankings["other"]
    assert len(rows) == 3 * (len(one.statistics) + len(one.regrets))
    by_key = {(row["source"], row["figure"]): row for row in rows}
    row, tau = by_key["other", "tau_loss"], one.statistics["tau_loss"]
    assert [float(row[key]) for key in ("value", "low", "high")] == [tau.value, tau.low, tau.high]
    # MACs rank as the truth does, so there is nothing left.
    assert by_key["both", "partial_loss"]["value"] == ""
    regret = by_key["supernet", "regret_points/half"]
    assert float(regret["value"]) == one.regrets[0].points
    assert float(regret["seed_std_points"]) == pytest.approx(1.0)


def test_the_text_lines_up_and_says_what_is_undefined(rankings: Mapping[str, Ranking]) -> None:
    text = ranking_text("supernet", rankings["supernet"])
    rows = text.splitlines()[3:]
    assert len(rows) == len(ranking_rows(rankings["supernet"]))
    assert sum("undefined" in row for row in rows) == 3
    assert "regret, half (of 4 architectures)" in text
    assert "one seed’s std: 1.00 points" in text
