"""Rank correlations, by formula and by hand."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr

from octnas.rank_correlations import (
    kendall,
    noise_ceiling,
    partial_kendall,
    spearman,
)

NAN = float("nan")


def array(values: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float64)


def pairs_kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """τ-b, pair by pair: (P - Q) / √((P + Q + X₀)(P + Q + Y₀))."""
    signs = [
        (np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)
    ]
    agree = sum(x * y for x, y in signs)
    return float(agree / math.sqrt(sum(x * x for x, _ in signs) * sum(y * y for _, y in signs)))


class TestKendall:
    def test_worked_example(self) -> None:
        """Of the six pairs one disagrees: (5 - 1) / 6."""
        assert kendall(array([1, 2, 3, 4]), array([1, 2, 4, 3])) == pytest.approx(4 / 6)

    def test_a_tie(self) -> None:
        """One pair is tied on the left, the other five agree: 5 / √(5 · 6)."""
        found = kendall(array([1, 1, 2, 3]), array([1, 2, 3, 4]))
        assert found == pytest.approx(5 / math.sqrt(30))

    def test_perfect_reversed_and_independent(self) -> None:
        a = array([3, 1, 4, 1, 5, 9, 2, 6])
        assert kendall(a, a) == 1.0
        assert kendall(a, -a) == -1.0
        # Two pairs agree and two disagree; in the other two the left side is tied.
        assert kendall(array([1, 1, 2, 2]), array([1, 4, 2, 3])) == 0.0

    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=25))
    def test_is_scipys_and_the_formulas(self, both: list[tuple[int, int]]) -> None:
        a, b = array([x for x, _ in both]), array([y for _, y in both])
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert math.isnan(kendall(a, b))
            return
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
        assert kendall(a, b) == pytest.approx(pairs_kendall(a, b), abs=1e-12)

    def test_infinite_losses_are_ranked_last_and_lost_ones_not_at_all(self) -> None:
        b = array([1, 2, 3, 4])
        assert kendall(array([1, 2, 3, math.inf]), b) == 1.0
        assert math.isnan(kendall(array([1, 2, 3, NAN]), b))
        assert math.isnan(spearman(array([1, 2, 3, NAN]), b))

    @given(
        st.lists(
            st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=15
        ).filter(lambda both: all(len(set(side)) > 1 for side in zip(*both, strict=True)))
    )
    def test_monotone_transforms_change_nothing(self, both: list[tuple[int, int]]) -> None:
        a, b = array([x for x, _ in both]), array([y for _, y in both])
        for measure in (kendall, spearman):
            assert measure(a**3, np.exp(b)) == pytest.approx(measure(a, b), abs=1e-12)
            assert measure(-a, b) == pytest.approx(-measure(a, b), abs=1e-12)
            assert measure(b, a) == pytest.approx(measure(a, b), abs=1e-12)
            assert -1 <= measure(a, b) <= 1 + 1e-12


def test_spearman_is_the_correlation_of_ranks() -> None:
    """1 - 6 Σ d² / (n (n² - 1)) with d² = 0, 0, 1, 1, 4, 4, …"""
    a, b = array([1, 2, 3, 4, 5]), array([2, 1, 4, 3, 5])
    assert spearman(a, b) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert math.isnan(spearman(array([2, 2, 2]), array([1, 2, 3])))
    # Constant, and yet numpy finds a spread of NaN here.
    assert math.isnan(spearman(array([math.inf, math.inf]), array([1, 2])))


class TestPartialKendall:
    """Kendall 1942: τ₁₂.₃ = (τ₁₂ - τ₁₃ τ₂₃) / √((1 - τ₁₃²)(1 - τ₂₃²))."""

    def test_worked_example(self) -> None:
        a, b, c = array([1, 2, 3, 4]), array([1, 3, 2, 4]), array([2, 1, 3, 4])
        # One, two and one of the six pairs disagree.
        ab, bc, ac = 4 / 6, 2 / 6, 4 / 6
        expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
        assert partial_kendall(a, b, c) == pytest.approx(expected)

    def test_is_phi_of_the_pairs_where_the_third_splits_them(self) -> None:
        """Without ties, it is φ of the fourfold table of pairs that agree with the third or not."""
        rng = np.random.default_rng(0)
        a, b, c = rng.normal(size=(3, 12))
        pairs = list(combinations(range(12), 2))
        with_a, with_b = (
            array([np.sign(x[i] - x[j]) * np.sign(c[i] - c[j]) for i, j in pairs]) for x in (a, b)
        )
        assert partial_kendall(a, b, c) == pytest.approx(float(pearsonr(with_a, with_b).statistic))

    def test_nothing_is_taken_out_where_the_third_is_unrelated(self) -> None:
        a, b = array([1, 2, 3, 4]), array([1, 3, 2, 4])
        unrelated = array([2, 1, 1, 2])
        assert kendall(a, unrelated) == kendall(b, unrelated) == 0
        assert partial_kendall(a, b, unrelated) == pytest.approx(kendall(a, b))

    def test_is_next_to_nothing_where_the_third_explains_all(self) -> None:
        c = array([1, 2, 3, 4, 5, 6, 7, 8, 9])
        a, b = array([2, 1, 3, 4, 5, 6, 7, 8, 9]), array([1, 2, 3, 4, 5, 6, 7, 9, 8])
        # Of 36 pairs one disagrees with c in a, another in b, and so two between a and b.
        ab, one = 1 - 2 * 2 / 36, 1 - 2 * 1 / 36
        expected = (ab - one**2) / (1 - one**2)
        assert partial_kendall(a, b, c) == pytest.approx(expected)
        assert abs(expected) < 0.03

    @pytest.mark.parametrize("size", range(3, 40))
    def test_is_undefined_where_the_third_is_one_of_the_two(self, size: int) -> None:
        """scipy's τ of a ranking with ties with itself is 1 - 1e-16, of which 1e-8 would remain."""
        rng = np.random.default_rng(size)
        given, other = rng.integers(0, 5, size).astype(float), rng.normal(size=size)
        assert math.isnan(partial_kendall(given, other, given))
        assert math.isnan(partial_kendall(other, given, -given))


class TestNoiseCeiling:
    def test_without_noise_it_is_one(self) -> None:
        truth = np.repeat(array([1, 2, 3, 4])[:, None], 3, axis=1)
        assert noise_ceiling(truth) == 1.0

    def test_a_single_seed_says_nothing(self) -> None:
        assert math.isnan(noise_ceiling(array([[1], [2], [3]])))

    def test_two_seeds_are_the_two_halves(self) -> None:
        rng = np.random.default_rng(1)
        truth, macs = rng.normal(size=(9, 2)), rng.normal(size=9)
        assert noise_ceiling(truth) == pytest.approx(kendall(truth[:, 0], truth[:, 1]))
        expected = partial_kendall(truth[:, 0], truth[:, 1], macs)
        assert noise_ceiling(truth, macs) == pytest.approx(expected)

    def test_three_seeds_are_one_against_two(self) -> None:
        truth = np.random.default_rng(2).normal(size=(7, 3))
        expected = np.mean(
            [
                kendall(truth[:, one], truth[:, [two, three]].mean(axis=1))
                for one, two, three in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
            ]
        )
        assert noise_ceiling(truth) == pytest.approx(expected)

    @pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
    def test_known_noise(self, noise: float) -> None:
        """Two normal means that share a part of 1 in 1 + noise² / (seeds / 2): τ is 2/π arcsin r.

        A score without any error has τ 2/π arcsin √(1 / (1 + noise² / seeds)): more than that.
        """
        rng, seeds = np.random.default_rng(3), 4
        quality = rng.normal(size=1500)
        truth = quality[:, None] + noise * rng.normal(size=(1500, seeds))
        correlation = 1 / (1 + noise**2 / (seeds / 2))
        expected = 2 / math.pi * math.asin(correlation)
        assert noise_ceiling(truth) == pytest.approx(expected, abs=0.03)
        perfect = 2 / math.pi * math.asin(math.sqrt(1 / (1 + noise**2 / seeds)))
        assert kendall(quality, truth.mean(axis=1)) == pytest.approx(perfect, abs=0.03)
        assert perfect > expected + 0.05
