from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy.stats import t

from octnas.front import Candidate, Front
from octnas.report.areas import areas_by_seed, hypervolume_words, hypervolumes
from octnas.report.data import ReportData
from octnas.results import RANDOM, SEARCHED, UNIFORM, Retrained

Make = Callable[..., ReportData]


def test_hypervolumes_are_those_of_fronts_by_seed(make_data: Make) -> None:
    data = make_data(searched=(0.80, 0.84), uniform=(0.70, 0.74), vanilla=(0.9, 0.9))
    searched, uniform, _ = data.retrained
    worst = 1 - 0.70
    for one, top1 in ((searched, (0.80, 0.84)), (uniform, (0.70, 0.74))):
        macs = one.network.cost.macs
        areas = [
            Front.of([Candidate("", {}, macs, 1 - value)]).hypervolume(
                (data.space.vanilla_macs, worst)
            )
            / data.space.vanilla_macs
            for value in top1
        ]
        mean, half = hypervolumes(data)[one.network.role]
        assert mean == pytest.approx(100 * np.mean(areas))
        assert half == pytest.approx(100 * t.ppf(0.975, 1) * np.std(areas, ddof=1) / sqrt(2))
    assert hypervolumes(data)[SEARCHED][0] > hypervolumes(data)[UNIFORM][0] > 0
    words = hypervolume_words(data)
    assert words is not None
    assert "searched" in words
    assert "uniform α" in words
    assert hypervolume_words(make_data(searched=(0.8, 0.9))) is None


def test_the_best_of_several_tries_does_not_stand_for_them(
    make_retrained: Callable[..., Retrained],
) -> None:
    """Three draws, of which the best on val is chosen, would look better than a draw is."""
    tops = ((0.70, 0.74), (0.60, 0.66), (0.72, 0.70))
    several = [
        replace(one, network=replace(one.network, number=number))
        for number, one in enumerate(
            (make_retrained(RANDOM, top1, alphas={"body": 1.0}) for top1 in tops), start=1
        )
    ]
    macs, worst = several[0].network.cost.macs, 0.5
    found = areas_by_seed(several, RANDOM, 2 * macs, worst)
    # Each alone dominates half of the MACs, from its error to the worst.
    expected = 100 * 0.5 * np.mean([[worst - (1 - top1) for top1 in one] for one in tops], axis=0)
    assert found == pytest.approx(list(expected))
    assert max(found) > 1
    # A budget with fewer draws than another: what has no counterpart counts nowhere.
    other = make_retrained(RANDOM, (0.9, 0.9), "small", {"stem": 1.0, "body": 1.0})
    both = areas_by_seed([*several, other], RANDOM, 2 * macs, worst)
    assert both == areas_by_seed([several[0], other], RANDOM, 2 * macs, worst)
