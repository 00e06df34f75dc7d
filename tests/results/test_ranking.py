"""What a ranking check says of its architectures, and what its bootstrap has to hold to.

Rank correlations, by formula and by hand.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr

from octnas.results.ranking import (
    Interval,
    Ranked,
    Ranking,
    Regret,
    kendall,
    noise_ceiling,
    partial_kendall,
    regrets,
    spearman,
    statistics,
)
from octnas.space.costs import Budget

NAN = float("nan")


def array(values: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float64)


def ranked(
    number: int,
    truth: Sequence[float],
    loss: float = 0.0,
    macs: int | None = None,
    narrow: bool = False,
    top1: float | None = None,
) -> Ranked:
    return Ranked(
        f"{number:02}",
        {"stem": 0.5},
        100 + number if macs is None else macs,
        narrow,
        loss,
        -loss if top1 is None else top1,
        tuple(truth),
    )


def drawn(count: int, seeds: int, noise: float, seed: int = 0) -> list[Ranked]:
    """Architectures of which every third is narrow; truth and score are quality plus noise."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=count)
    return [
        ranked(
            number,
            tuple(quality[number] + noise * rng.normal(size=seeds)),
            loss=float(-quality[number] + noise * rng.normal()),
            macs=int(1000 * quality[number] + 2000 * rng.normal()),
            narrow=number % 3 == 0,
        )
        for number in range(count)
    ]


def value(entries: Sequence[Ranked], name: str) -> float | None:
    return statistics(entries, resamples=1)[name].value


class TestStatistics:
    def test_a_perfect_and_a_reversed_score(self) -> None:
        right = [ranked(n, (n / 10, n / 10), loss=-n) for n in range(8)]
        wrong = [ranked(n, (n / 10, n / 10), loss=n) for n in range(8)]
        for entries, expected in ((right, 1.0), (wrong, -1.0)):
            found = statistics(entries, resamples=50)
            for name in ("tau_loss", "tau_top1", "rho_loss", "rho_top1"):
                assert found[name] == Interval(*(pytest.approx(expected),) * 3)
            assert found["tau_macs"].value == 1.0
            assert found["gain"].value == expected - 1
            # MACs rank as the truth does: nothing is left that the score could explain.
            assert found["partial_loss"] == Interval(None, None, None)

    def test_every_figure_is_what_it_is_called(self) -> None:
        entries = drawn(30, 3, 0.5)
        found = {name: one.value for name, one in statistics(entries, resamples=1).items()}
        truth = np.array([e.truth for e in entries])
        mean, macs = truth.mean(axis=1), array([e.macs for e in entries])
        loss, top1 = array([-e.loss for e in entries]), array([e.top1 for e in entries])
        inside = np.array([e.narrow for e in entries])
        assert found == {
            "tau_loss": pytest.approx(kendall(loss, mean)),
            "tau_top1": pytest.approx(kendall(top1, mean)),
            "rho_loss": pytest.approx(spearman(loss, mean)),
            "rho_top1": pytest.approx(spearman(top1, mean)),
            "tau_macs": pytest.approx(kendall(macs, mean)),
            "gain": pytest.approx(kendall(loss, mean) - kendall(macs, mean)),
            "partial_loss": pytest.approx(partial_kendall(loss, mean, macs)),
            "partial_top1": pytest.approx(partial_kendall(top1, mean, macs)),
            "ceiling": pytest.approx(noise_ceiling(truth)),
            "partial_ceiling": pytest.approx(noise_ceiling(truth, macs)),
            "slice_loss": pytest.approx(kendall(loss[inside], mean[inside])),
            "slice_top1": pytest.approx(kendall(top1[inside], mean[inside])),
            "slice_ceiling": pytest.approx(noise_ceiling(truth[inside])),
            "slice_rho_loss": pytest.approx(spearman(loss[inside], mean[inside])),
            "slice_rho_top1": pytest.approx(spearman(top1[inside], mean[inside])),
        }

    def test_the_order_of_the_seeds_decides_nothing(self) -> None:
        """(.1 + .2 + .3) / 3 is not (.3 + .2 + .1) / 3: these two tie, whatever rounding says."""
        tied = ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
        rest = [ranked(2, (0.05,) * 3, loss=3), ranked(3, (0.3,) * 3, loss=-1)]
        found = [
            value([ranked(0, first, loss=1), ranked(1, second, loss=2), *rest], "tau_loss")
            for first, second in (tied, tied[::-1])
        ]
        assert found == [pytest.approx(5 / math.sqrt(30))] * 2
        halves = array([[0.1, 0.2, 0.3, 1, 2, 3], [0.3, 0.2, 0.1, 2, 3, 1], [1, 1, 1, 0, 0, 0]])
        assert noise_ceiling(halves) == pytest.approx(noise_ceiling(halves[:, ::-1]), abs=1e-12)

    def test_constant_columns_are_undefined_and_not_zero(self) -> None:
        same_macs = [ranked(n, (n / 10, n / 5), loss=-n, macs=7) for n in range(6)]
        found = statistics(same_macs, resamples=20)
        for name in ("tau_macs", "gain", "partial_loss", "partial_ceiling"):
            assert found[name] == Interval(None, None, None), name
        assert found["tau_loss"].value == 1.0
        same_score = [ranked(n, (n / 10, n / 5), loss=1.0) for n in range(6)]
        found = statistics(same_score, resamples=20)
        assert found["tau_loss"] == found["rho_top1"] == Interval(None, None, None)
        assert found["tau_macs"].value == 1.0

    def test_a_single_seed_has_no_ceiling(self) -> None:
        found = statistics(drawn(12, 1, 0.5), resamples=20)
        for name in ("ceiling", "partial_ceiling", "slice_ceiling"):
            assert found[name] == Interval(None, None, None)
        assert found["tau_loss"].value is not None

    def test_few_architectures_have_no_interval(self) -> None:
        """Four that are ranked right would have one of 1 to 1."""
        entries = [ranked(n, (n / 10, n / 5), loss=-n, macs=-n, narrow=n < 4) for n in range(6)]
        found = statistics(entries, resamples=20)
        assert found["slice_loss"] == Interval(1.0, None, None)
        assert found["tau_loss"] == Interval(1.0, 1.0, 1.0)

    def test_without_a_slice_there_is_none(self) -> None:
        entries = [ranked(n, (n / 10,), loss=-n) for n in range(6)]
        assert not any(name.startswith("slice") for name in statistics(entries, resamples=2))
        one = [*entries, ranked(9, (0.9,), narrow=True)]
        assert not any(name.startswith("slice") for name in statistics(one, resamples=2))

    def test_a_lost_loss_is_no_crash(self) -> None:
        entries = [*drawn(9, 2, 0.5), ranked(9, (0.5, 0.4), loss=NAN, top1=0.1)]
        found = statistics(entries, resamples=20)
        assert found["tau_loss"].value is None
        assert found["tau_top1"].value is not None

    def test_the_same_seed_gives_the_same_intervals(self) -> None:
        entries = drawn(20, 3, 0.7)
        first, again = (statistics(entries, resamples=60, seed=5) for _ in range(2))
        assert first == again
        other = statistics(entries, resamples=60, seed=6)
        assert {n: i.value for n, i in first.items()} == {n: i.value for n, i in other.items()}
        assert first["tau_loss"] != other["tau_loss"]

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.integers(4, 20), st.integers(1, 3), st.floats(0.1, 2))
    def test_intervals(self, seed: int, count: int, seeds: int, noise: float) -> None:
        for name, found in statistics(drawn(count, seeds, noise, seed), resamples=40).items():
            ends = (found.low, found.high)
            assert (found.low is None) == (found.high is None)
            if found.low is not None and found.high is not None:
                assert found.low <= found.high
                assert found.low >= -2
                assert found.high <= 2 if name == "gain" else found.high <= 1 + 1e-12
            assert all(end is None or math.isfinite(end) for end in ends)

    def test_intervals_hold_the_value_mostly(self) -> None:
        held = []
        for seed in range(20):
            for found in statistics(drawn(30, 3, 0.5, seed), resamples=60).values():
                assert found.value is not None
                assert found.low is not None
                assert found.high is not None
                held.append(found.low <= found.value <= found.high)
        assert np.mean(held) > 0.97

    @pytest.mark.slow
    def test_intervals_hold_the_truth_about_as_often_as_they_say(self) -> None:
        """A score of correlation r with a normal truth has a τ of 2/π arcsin r."""
        correlation, held = 0.6, []
        expected = 2 / math.pi * math.asin(correlation)
        for seed in range(60):
            rng = np.random.default_rng(seed)
            a, b = rng.normal(size=(2, 36))
            score = correlation * a + math.sqrt(1 - correlation**2) * b
            entries = [ranked(n, (a[n],), loss=float(-score[n])) for n in range(36)]
            found = statistics(entries, resamples=80)["tau_loss"]
            assert found.low is not None
            assert found.high is not None
            held.append(found.low <= expected <= found.high)
        assert 0.8 < np.mean(held) <= 1

    @settings(max_examples=30)
    @given(st.integers(0, 10_000))
    def test_monotone_transforms_of_the_score_change_nothing(self, seed: int) -> None:
        entries = drawn(10, 2, 1.0, seed)
        bent = [replace(e, loss=math.exp(e.loss), top1=e.top1**3) for e in entries]
        before, after = (statistics(some, resamples=15, seed=1) for some in (entries, bent))
        for name, found in before.items():
            for end in ("value", "low", "high"):
                expected = getattr(found, end)
                assert getattr(after[name], end) == (
                    expected if expected is None else pytest.approx(expected, abs=1e-12)
                )


def test_trained_losses_have_figures_of_their_own() -> None:
    """Two of three pairs agree with the mean losses 1, 2, 4: τ is 1/3. The seeds agree fully."""
    entries = [
        replace(ranked(number, (0.5, 0.5), loss=loss, narrow=True), trained_losses=trained)
        for number, (loss, trained) in enumerate(
            [(2.0, (0.9, 1.1)), (1.0, (2.0, 2.0)), (3.0, (3.0, 5.0))]
        )
    ]
    found = statistics(entries, resamples=1)
    for prefix in ("", "slice_"):
        assert found[f"{prefix}trained_loss"].value == pytest.approx(1 / 3)
        assert found[f"{prefix}trained_loss_ceiling"].value == 1
    assert "trained_loss" not in statistics(drawn(4, 2, 1.0), resamples=1)


class TestRegret:
    ENTRIES = (
        ranked(0, (0.50, 0.54), loss=0.9, macs=100),
        ranked(1, (0.70, 0.70), loss=0.5, macs=200),
        ranked(2, (0.60, 0.64), loss=0.4, macs=300),
        ranked(3, (0.90, 0.94), loss=0.1, macs=400),
    )

    def test_by_hand(self) -> None:
        """Within 300 MACs number 2 has the lowest loss and reaches 62 %, number 1 reaches 70 %.

        The variances over seeds are 8, 0, 8 and 8 squared points: √6 pooled.
        """
        found = regrets(self.ENTRIES, [Budget("b", 300), Budget("all", 400), Budget("one", 100)])
        std = pytest.approx(math.sqrt(6))
        assert found == (
            Regret("b", 3, pytest.approx(8.0), std),
            Regret("all", 4, pytest.approx(0.0), std),
        )

    def test_lower_bounds_count(self) -> None:
        (found,) = regrets(self.ENTRIES, [Budget("b", 400, min_macs=150)])
        assert (found.architectures, found.points) == (3, 0.0)

    def test_a_single_seed_has_no_spread(self) -> None:
        entries = [ranked(0, (0.5,), loss=1), ranked(1, (0.25,), loss=0)]
        assert regrets(entries, [Budget("b", 1000)]) == (Regret("b", 2, 25.0, None),)

    def test_of_equal_losses_the_first_id_is_picked_whatever_the_order(self) -> None:
        entries = [ranked(0, (0.5,), loss=1), ranked(1, (0.75,), loss=1)]
        for order in (entries, entries[::-1]):
            assert regrets(order, [Budget("b", 1000)])[0].points == 25.0

    def test_a_lost_loss_is_never_picked(self) -> None:
        entries = [ranked(0, (0.5,), loss=NAN), ranked(1, (0.75,), loss=1)]
        for order in (entries, entries[::-1]):
            assert regrets(order, [Budget("b", 1000)])[0].points == 0.0

    def test_intervals_are_those_of_resampled_architectures(self) -> None:
        """Of seven that are ranked right there is no regret in any resample; of fewer no interval.

        Of seven that are ranked the other way round the worst is picked: by 60 points at most,
        where a resample holds both ends, and by none where it is one architecture.
        """
        right = [ranked(n, (n / 10,), loss=-n) for n in range(7)]
        wrong = [ranked(n, (n / 10,), loss=n) for n in range(7)]
        (found,) = regrets(right, [Budget("b", 10_000)], resamples=50)
        assert (found.points, found.low, found.high) == (0.0, 0.0, 0.0)
        (found,) = regrets(wrong, [Budget("b", 10_000)], resamples=500)
        assert found.points == pytest.approx(60)
        assert found.low is not None
        assert 20 <= found.low < 50
        assert found.high == pytest.approx(60)
        (found,) = regrets(wrong[:5], [Budget("b", 10_000)], resamples=50)
        assert (found.low, found.high) == (None, None)

    @given(st.integers(0, 10_000))
    def test_is_never_negative(self, seed: int) -> None:
        for found in regrets(drawn(8, 2, 1.0, seed), [Budget("b", 10_000)]):
            assert found.points >= 0


def test_json_round_trip() -> None:
    entries = tuple(drawn(8, 1, 0.5))
    ranking = Ranking(
        entries,
        statistics(entries, resamples=5),
        regrets(entries, [Budget("b", 10_000)]),
        {"score": 1.5, "scoring": 0.5, "truth": 20.0},
        8,
    )
    assert None in (ranking.regrets[0].std, ranking.statistics["ceiling"].value)
    text = json.dumps(ranking.to_dict(), allow_nan=False)
    assert Ranking.from_dict(json.loads(text)) == ranking
    assert json.loads(text)["schema"] == 1


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
