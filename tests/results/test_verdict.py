"""Simulated networks: each image has a probability to be right, each training a quality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_ind

from octnas.results.verdict import Verdict, difference, mean_interval

IMAGES = 400


def networks(
    rng: np.random.Generator, seeds: int, gap: float, spread: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Two networks on the same images; the first is better by ``gap`` on average."""
    easy = rng.beta(2, 1, size=IMAGES)

    def trained(shift: float) -> np.ndarray:
        own = easy + rng.normal(scale=0.15, size=IMAGES)
        quality = shift + rng.normal(scale=spread, size=(seeds, 1))
        return (rng.random((seeds, IMAGES)) < np.clip(own + quality, 0, 1)).astype(float)

    return trained(gap), trained(0.0)


def test_intervals_hold_what_they_promise() -> None:
    """Other seeds and other images: both are drawn anew every time."""
    rng, inside, found = np.random.default_rng(0), 0, 400
    for _ in range(found):
        one = difference(*networks(rng, seeds=3, gap=0.0))
        assert one.half_width is not None
        inside += abs(one.points) <= one.half_width
    # Three standard deviations of a binomial share.
    assert inside / found > 0.95 - 3 * np.sqrt(0.95 * 0.05 / found)


def test_a_difference_that_is_detectable_is_mostly_seen() -> None:
    rng, seen, found = np.random.default_rng(1), 0, 200
    sizes = [difference(*networks(rng, 5, 0.0)).detectable or 0.0 for _ in range(50)]
    for _ in range(found):
        one = difference(*networks(rng, 5, float(np.mean(sizes)) / 100))
        seen += one.verdict is Verdict.BETTER
    # Not every point of quality is one of accuracy: some images are right at any rate.
    assert 0.6 < seen / found < 0.95


def test_accuracies_alone_give_welchs_interval() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.8, 0.01, (4, 1)), rng.normal(0.79, 0.02, (6, 1))
    expected = ttest_ind(first[:, 0], second[:, 0], equal_var=False).confidence_interval(0.95)
    found = difference(first, second)
    assert found.half_width is not None
    assert found.points - found.half_width == pytest.approx(100 * expected.low)
    assert found.points + found.half_width == pytest.approx(100 * expected.high)


@pytest.mark.parametrize(("seeds", "points"), [(3, 2.0), (10, 0.9)])
def test_three_seeds_resolve_two_points_and_ten_nearly_one(seeds: int, points: float) -> None:
    """With a standard deviation of .7 points, as small data has."""
    values = np.linspace(-1, 1, seeds)[:, None]
    values *= 0.007 / values.std(ddof=1)
    found = difference(0.8 + values, 0.8 + values)
    assert found.detectable == pytest.approx(points, rel=0.1)


def test_where_nothing_can_be_said() -> None:
    rng = np.random.default_rng(3)
    first, second = networks(rng, 3, 0.1)
    assert difference(first[:1], second).verdict is Verdict.ONE_SEED
    assert difference(first[:1].repeat(2, 0), first[:1].repeat(2, 0)).verdict is Verdict.NO_SPREAD
    assert difference(first, second).verdict is Verdict.BETTER
    assert difference(second, first).verdict is Verdict.WORSE


def test_a_stricter_level_is_wider() -> None:
    first, second = networks(np.random.default_rng(4), 3, 0.0)
    wide, narrow = difference(first, second, 1 - 0.05 / 3), difference(first, second)
    assert wide.half_width is not None
    assert narrow.half_width is not None
    assert wide.half_width > narrow.half_width


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_swapping_the_networks_swaps_the_sign(seed: int, seeds: int) -> None:
    first, second = networks(np.random.default_rng(seed), seeds, 0.02)
    there, back = difference(first, second), difference(second, first)
    assert there.points == pytest.approx(-back.points)
    assert there.half_width == pytest.approx(back.half_width)


def test_the_interval_of_a_mean_is_students() -> None:
    mean, half = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert mean_interval([2.0]) == (2.0, None)
