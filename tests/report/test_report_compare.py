from collections.abc import Callable
from math import sqrt

import pytest
from scipy.stats import t, ttest_ind

from octnas.report.compare import Verdict, compare
from octnas.results import Retrained

Make = Callable[..., Retrained]


def test_interval_of_equal_spreads_is_the_formula(make_retrained: Make) -> None:
    searched = make_retrained("searched", (0.80, 0.82, 0.84))
    uniform = make_retrained("uniform", (0.70, 0.72, 0.74))
    comparison = compare(searched, uniform)
    assert comparison.points == pytest.approx(100 * (0.82 - 0.72))
    assert comparison.half_width == pytest.approx(100 * t.ppf(0.975, 4) * sqrt(2 * 0.02**2 / 3))
    assert comparison.verdict is Verdict.BETTER


def test_interval_of_unequal_spreads_is_welchs(make_retrained: Make) -> None:
    first, second = (0.80, 0.81, 0.84, 0.79), (0.70, 0.78, 0.74)
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = compare(make_retrained("searched", first), make_retrained("uniform", second))
    assert found.half_width == pytest.approx(100 * (expected.high - expected.low) / 2)


def test_one_side_without_spread(make_retrained: Make) -> None:
    found = compare(make_retrained("searched", (0.8, 0.8)), make_retrained("uniform", (0.6, 0.62)))
    # One degree of freedom remains, and the spread of one side.
    assert found.half_width == pytest.approx(100 * t.ppf(0.975, 1) * 0.01)


@pytest.mark.parametrize(
    ("searched", "uniform", "verdict"),
    [
        ((0.80, 0.81, 0.82), (0.70, 0.71, 0.72), Verdict.BETTER),
        ((0.70, 0.71, 0.72), (0.80, 0.81, 0.82), Verdict.WORSE),
        ((0.80, 0.82, 0.84), (0.80, 0.81, 0.82), Verdict.NOISE),
        ((0.80, 0.82), (0.60,), Verdict.ONE_SEED),
        ((0.80,), (0.60,), Verdict.ONE_SEED),
        ((0.80, 0.80), (0.60, 0.60), Verdict.NO_SPREAD),
    ],
)
def test_verdicts(
    make_retrained: Make, searched: tuple[float], uniform: tuple[float], verdict: Verdict
) -> None:
    comparison = compare(make_retrained("searched", searched), make_retrained("uniform", uniform))
    assert comparison.verdict is verdict


def test_a_network_is_not_compared_with_itself(make_retrained: Make) -> None:
    alphas = {"stem": 0.5, "body": 0.5}
    searched = make_retrained("searched", (0.80, 0.82), alphas=alphas)
    assert compare(searched, make_retrained("uniform", (0.7, 0.72))).verdict is Verdict.SAME
