from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy.stats import t

from octnas.report.data import ReportData
from octnas.report.style import format_bytes, format_count, format_percent
from octnas.report.verdicts import (
    Comparison,
    areas_by_seed,
    comparison_words,
    comparisons,
    expected_baselines,
    fewer_macs_words,
    headline,
    hypervolume_words,
    hypervolumes,
    savings,
)
from octnas.results.front import Candidate, Front
from octnas.results.networks import INCREASING, NARROWER, RANDOM, SEARCHED, UNIFORM, Retrained
from octnas.results.verdict import Verdict, difference
from octnas.space.costs import Bound
from octnas.space.peak import peak_of

Make = Callable[..., ReportData]


def against_uniform(data: ReportData) -> Comparison:
    return against(data, UNIFORM)


def against(data: ReportData, role: str) -> Comparison:
    (found,) = (one for one in comparisons(data, data.budgets[0]) if one.role == role)
    return found


def test_interval_of_equal_spreads_is_the_formula(make_data: Make) -> None:
    data = make_data(searched=(0.80, 0.82, 0.84), uniform=(0.70, 0.72, 0.74))
    found = against_uniform(data).difference
    assert found.points == pytest.approx(100 * (0.82 - 0.72))
    assert found.half_width == pytest.approx(100 * t.ppf(0.975, 4) * sqrt(2 * 0.02**2 / 3))
    assert found.verdict is Verdict.BETTER


def test_several_budgets_share_the_probability_of_an_error(make_data: Make) -> None:
    data = make_data(searched=(0.80, 0.82, 0.84), uniform=(0.70, 0.72, 0.74))
    three = replace(data, budgets=(*data.budgets, *data.budgets, *data.budgets))
    quantile = t.ppf(1 - 0.05 / 3 / 2, 4)
    assert against_uniform(three).difference.half_width == pytest.approx(
        100 * quantile * sqrt(2 * 0.02**2 / 3)
    )


def test_one_side_without_spread(make_data: Make) -> None:
    found = against_uniform(make_data(searched=(0.8, 0.8), uniform=(0.6, 0.62))).difference
    # One degree of freedom remains, and the spread of one side.
    assert found.half_width == pytest.approx(100 * t.ppf(0.975, 1) * 0.01)


VERDICTS = [
    ((0.80, 0.81, 0.82), (0.70, 0.71, 0.72), Verdict.BETTER),
    ((0.70, 0.71, 0.72), (0.80, 0.81, 0.82), Verdict.WORSE),
    ((0.80, 0.82, 0.84), (0.80, 0.81, 0.82), Verdict.NOISE),
    ((0.80, 0.82), (0.60,), Verdict.ONE_SEED),
    ((0.80,), (0.60,), Verdict.ONE_SEED),
    ((0.80, 0.80), (0.60, 0.60), Verdict.NO_SPREAD),
]


@pytest.mark.parametrize(("searched", "uniform", "verdict"), VERDICTS)
def test_verdicts(
    make_data: Make, searched: tuple[float], uniform: tuple[float], verdict: Verdict
) -> None:
    assert against_uniform(make_data(searched=searched, uniform=uniform)).verdict is verdict


def test_nothing_to_compare(make_data: Make) -> None:
    data = make_data(searched=(0.8, 0.9))
    assert comparisons(data, data.budgets[0]) == []


def test_images_count_where_they_are_known(make_data: Make) -> None:
    data = make_data(searched=(0.80, 0.82, 0.84), uniform=(0.70, 0.72, 0.74))
    rng = np.random.default_rng(0)
    correct = {
        one.network.architecture.id: (rng.random((3, 50)) < share).astype(float)
        for one, share in zip(data.retrained, (0.9, 0.4), strict=True)
    }
    found = against_uniform(replace(data, correct=correct)).difference
    assert found == difference(*correct.values())
    # Of one of the two alone they say nothing.
    half = dict(list(correct.items())[:1])
    assert against_uniform(replace(data, correct=half)) == against_uniform(data)


def test_several_baselines_count_by_their_mean(
    make_data: Make, make_retrained: Callable[..., object]
) -> None:
    data = make_data(searched=(0.80, 0.82, 0.84))
    tops = ((0.70, 0.72), (0.60, 0.66), (0.69, 0.71))
    several = [make_retrained(RANDOM, top1, alphas={"body": 1.0}) for top1 in tops]
    data = replace(data, retrained=(*data.retrained, *several))
    found = against(data, RANDOM)
    means = np.array([np.mean(top1) for top1 in tops])
    assert found.difference.points == pytest.approx(100 * (0.82 - means.mean()))
    error = sqrt(0.02**2 / 3 + means.var(ddof=1) / 3)
    assert found.difference.detectable == pytest.approx(
        100 * error * (0.84 + 2.776), rel=0.2
    )  # quantiles of Student's t at four degrees of freedom, or somewhat fewer
    assert "mean of 3: 68.0 %" in comparison_words(found)


def test_the_first_line_says_whether_the_search_won(make_data: Make) -> None:
    better = make_data(searched=(0.8, 0.81, 0.82), uniform=(0.6, 0.61, 0.62))
    assert headline(better)[0] == (
        "The search won at 1 of 1 budget (half): better than every baseline trained there."
    )
    beaten = make_data(
        searched=(0.8, 0.81, 0.82), uniform=(0.6, 0.61, 0.62), increasing=(0.8, 0.81, 0.83)
    )
    assert headline(beaten)[0].startswith("The search did not win")
    one = make_data(searched=(0.8,), uniform=(0.6,))
    assert headline(one)[0].startswith("No verdict on the search")
    assert headline(make_data(searched=(0.8, 0.9))) == ()


def test_a_smaller_network_is_compared_with_the_next_larger_uniform_one(
    make_data: Make, make_retrained: Callable[..., object]
) -> None:
    data = make_data(searched=(0.80, 0.82, 0.84), uniform=(0.70, 0.72, 0.74))
    half = data.budgets[0]
    small_one = make_retrained("searched", (0.69, 0.71, 0.73), "small", {"stem": 0.5, "body": 1.0})
    largest = make_retrained(UNIFORM, (0.90, 0.91, 0.92), "large", {"stem": 0.0, "body": 0.0})
    data = replace(data, retrained=(*data.retrained, small_one, largest))
    searched, uniform = (data.find(role, "half") for role in ("searched", UNIFORM))
    assert searched is not None
    assert uniform is not None
    small = data.find("searched", "small")
    assert small is not None
    fewer = 1 - small.network.cost.macs / uniform.network.cost.macs
    assert 0.1 < fewer < 0.5
    # The next larger one counts, not the largest, and only with a tenth more MACs.
    words = fewer_macs_words(data, replace(half, name="small"))
    assert words is not None
    assert words.startswith(f"With {100 * fewer:.1f} % fewer MACs than uniform, half: −1.00 points")
    assert "(interval " in words
    only = replace(data, retrained=(small, searched))
    assert fewer_macs_words(only, replace(half, name="small")) is None
    assert fewer_macs_words(data, replace(half, name="none")) is None


def test_baselines_of_the_settings_are_expected(make_data: Make) -> None:
    data = make_data(searched=(0.8, 0.9))
    assert expected_baselines(data) == (UNIFORM, INCREASING)
    assert expected_baselines(replace(data, baselines=("vanilla", "narrower"))) == (
        UNIFORM,
        INCREASING,
        NARROWER,
    )


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
    found = areas_by_seed(several, 2 * macs, worst)
    # Each alone dominates half of the MACs, from its error to the worst.
    expected = 100 * 0.5 * np.mean([[worst - (1 - top1) for top1 in one] for one in tops], axis=0)
    assert found == pytest.approx(list(expected))
    assert max(found) > 1
    # A budget with fewer draws than another: what has no counterpart counts nowhere.
    other = make_retrained(RANDOM, (0.9, 0.9), "small", {"stem": 1.0, "body": 1.0})
    both = areas_by_seed([*several, other], 2 * macs, worst)
    assert both == areas_by_seed([several[0], other], 2 * macs, worst)


def test_the_first_line_says_what_was_saved_and_what_is_left(tuned: ReportData) -> None:
    searched, full = tuned.retrained[0].network.cost, tuned.retrained[-1].network.cost
    saved = format_percent(1 - searched.macs / full.macs)
    assert headline(tuned)[0] == (
        f"{format_count(searched.macs)} MACs instead of {format_count(full.macs)} (−{saved}), "
        "82.0 ± 2.0 % top-1 against your network’s 83.0 %."
    )
    several = (Bound("activation", 10**6), Bound("peak", 10**6))
    budgets = [replace(tuned.budgets[0], further=several), replace(tuned.budgets[0], name="other")]
    (line,) = savings(replace(tuned, budgets=tuple(budgets), reference="the original"))
    peak = peak_of(tuned.space)
    own = peak.of(tuned.retrained[0].network.architecture.alphas)
    for less, more, what in (
        (searched.activation_bytes, full.activation_bytes, "of activations"),
        (own, peak.vanilla, "of memory at the peak"),
    ):
        assert less <= more
        assert f"{format_bytes(less)} {what} instead of {format_bytes(more)} (−" in line
    assert line.startswith(f"half: {format_count(searched.macs)} MACs instead of ")
    assert line.endswith("against the original’s 83.0 %.")


def test_nothing_is_saved_of_no_network(full: ReportData, make_data: Make) -> None:
    assert savings(full) == ()
    assert savings(replace(make_data(), original=full.retrained[-1])) == ()
