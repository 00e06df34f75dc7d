from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from octnas.ranking import Interval, Ranking
from octnas.report.data import ReportData
from octnas.report.distrust import distrust
from octnas.report.latencies import Latencies, Timing

Make = Callable[..., ReportData]


def said(data: ReportData) -> str:
    return "\n".join(distrust(data))


def check(ceiling: float | None, gain_low: float) -> Ranking:
    statistics = {
        "ceiling": Interval(ceiling, None, None),
        "gain": Interval(0.2, gain_low, 0.4),
    }
    return Ranking((), statistics, (), {}, 1)


def trusted(full: ReportData) -> ReportData:
    """Nothing to distrust."""
    cost = full.retrained[0].network.cost
    fair = (replace(one, network=replace(one.network, cost=cost)) for one in full.retrained)
    ids = [one.network.architecture.id for one in full.retrained]
    clock = Latencies("phone", "eager", "float32", 1, 1, dict.fromkeys(ids, Timing(0.001)))
    return replace(
        full,
        retrained=tuple(fair),
        rankings={"supernet": check(0.8, 0.1)},
        latencies=(clock,),
        correct=dict.fromkeys(ids, np.ones((3, 5000))),
    )


def test_nothing_is_said_where_nothing_is_weak(full: ReportData) -> None:
    assert distrust(trusted(full)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"skipped": 7}, "7 images and folders were skipped"),
        ({"latencies": ()}, "Latency was not measured, and MACs are not time"),
        ({"rankings": {}}, "Whether the supernet ranks was not checked"),
        ({"rankings": {"supernet": check(0.31, 0.1)}}, "Low noise ceiling (supernet)"),
        ({"rankings": {"supernet": check(None, 0.1)}}, "unknown: one seed"),
        ({"rankings": {"both": check(0.8, -0.1)}}, "scores of both are not shown to rank better"),
        ({"correct": {}}, "intervals are over seeds alone"),
        ({"correct": {"a": np.ones((2, 200))}}, "200 images: each is 0.50 points"),
        ({"unfinished": {"retrain": "has begun"}}, "The run is not finished (retrain)"),
        ({"retrained": ()}, "No network was retrained"),
    ],
)
def test_each_weakness_is_said(full: ReportData, change: dict[str, object], sentence: str) -> None:
    assert sentence in said(replace(trusted(full), **change))


def test_few_seeds_and_missing_controls(make_data: Make) -> None:
    data = make_data(searched=(0.8, 0.9))
    assert "1 of 1 network were trained with fewer than 3" in said(data)
    assert "Nothing was trained with uniform α" in said(data)


def test_latency_of_some_networks_only(full: ReportData) -> None:
    data = trusted(full)
    first = full.retrained[0].network.architecture.id
    clock = replace(data.latencies[0], measured={first: Timing(0.001)})
    assert "not measured of 3 retrained networks" in said(replace(data, latencies=(clock,)))
    guess = replace(clock, measured={}, predicted={first: 0.001})
    assert "predicted from a table and not measured" in said(replace(data, latencies=(guess,)))


def test_a_control_that_was_asked_for_and_is_missing_is_said(full: ReportData) -> None:
    asked = replace(trusted(full), controls=("uniform", "growing", "shallower", "vanilla"))
    assert distrust(asked) == [
        "Nothing was trained with a shallower plain network to hold the search against."
    ]


def test_a_control_of_fewer_macs_is_said(full: ReportData) -> None:
    """As there may be under a budget on latency."""
    data = trusted(full)
    searched, uniform, *others = data.retrained
    cost = replace(uniform.network.cost, macs=round(0.8 * searched.network.cost.macs))
    cheaper = replace(uniform, network=replace(uniform.network, cost=cost))
    (sentence,) = distrust(replace(data, retrained=(searched, cheaper, *others)))
    assert sentence.startswith("uniform, half: 20.0 % fewer MACs than the searched network")
