"""Turns, ratios and what is said of them; nothing here looks at a real clock."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from octnas.measure import timing
from octnas.measure.timing import Ratio, compare, spread, take_turns

# Rounds for which ranks in the normal approximation without its correction cover too little are
# among them: 8, 11, 16, 21, 26.
ROUNDS = (6, 8, 11, 16, 20, 21, 26, 30)
SIMULATIONS = 2000


class Clock:
    """A clock that only the timed functions move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """A function that takes so long, each time the next of these."""

        def function() -> None:
            self.now += seconds[self.calls.count(name) % len(seconds)]
            self.calls.append(name)

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.mark.parametrize("warm_up", [0, 1, 2])
def test_functions_take_turns(clock: Clock, warm_up: int) -> None:
    functions = {name: clock.takes(name, 1.0) for name in "abc"}
    found = take_turns(functions, repeats=4, warm_up=warm_up)
    assert clock.calls == list("abc") * (warm_up + 4)
    assert list(found) == list("abc")
    assert all(seconds.shape == (4,) for seconds in found.values())


def test_rounds_before_do_not_count(clock: Clock) -> None:
    functions = {"a": clock.takes("a", 64.0, 32.0, 1.0, 2.0, 3.0), "b": clock.takes("b", 0.5)}
    found = take_turns(functions, repeats=3)
    assert found["a"].tolist() == [1.0, 2.0, 3.0]
    assert found["b"].tolist() == [0.5, 0.5, 0.5]


def test_the_value_is_the_median_ratio_of_the_rounds() -> None:
    """By round 1, 1, 2.25, .5, 1.5 and 4."""
    seconds, base = np.array([1.0, 2.0, 9.0, 4.0, 3.0, 8.0]), np.array([1.0, 2.0, 4.0, 8.0, 2.0, 2])
    assert compare(seconds, base).value == 1.25


@pytest.mark.parametrize("rounds", range(6, 200))
def test_ranks_cover_enough_and_no_more_than_needed(rounds: int) -> None:
    """Exactly: the median lies between ranks k and n+1−k unless fewer than k are on one side."""

    def coverage(rank: int) -> float:
        return 1 - 2 * sum(math.comb(rounds, i) for i in range(rank)) / 2**rounds

    ratio = compare(np.arange(1.0, rounds + 1), np.ones(rounds))
    rank = int(ratio.low)
    assert ratio.high == rounds + 1 - rank
    assert coverage(rank) >= 0.95
    assert coverage(rank + 1) < 0.955


@pytest.mark.parametrize("truth", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_interval_contains_the_truth_as_often_as_it_says(rounds: int, truth: float) -> None:
    """On a machine that slows down for whole rounds, with single outliers besides."""
    rng = np.random.default_rng(rounds)
    hits = 0
    for _ in range(SIMULATIONS):
        machine = np.exp(rng.normal(0, 0.3, rounds))
        noise = np.exp(0.05 * rng.standard_t(2, (2, rounds)))
        ratio = compare(truth * machine * noise[0], machine * noise[1])
        hits += ratio.low <= truth <= ratio.high
    three_sigma = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)
    assert hits / SIMULATIONS >= 0.95 - three_sigma


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, *ROUNDS, 1000])
def test_the_interval_stays_within_what_was_seen(rounds: int) -> None:
    rng = np.random.default_rng(0)
    seconds, base = rng.lognormal(size=(2, rounds))
    ratio = compare(seconds, base)
    by_round = seconds / base
    assert by_round.min() <= ratio.low <= ratio.value <= ratio.high <= by_round.max()
    assert {ratio.low, ratio.high} <= set(by_round)


def test_a_function_against_itself() -> None:
    seconds = np.random.default_rng(0).lognormal(size=20)
    assert compare(seconds, seconds) == Ratio(1.0, 1.0, 1.0)
    assert compare(seconds, seconds).undecided


def test_more_rounds_make_it_narrower() -> None:
    rng = np.random.default_rng(0)
    noise = 1 + 0.1 * rng.random((2, 1000))
    few, many = (compare(noise[0, :n], noise[1, :n]) for n in (20, 1000))
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.parametrize(
    ("low", "high", "undecided"),
    [
        (0.9, 1.1, True),
        (0.8, 0.999, False),
        (1.001, 1.2, False),
        (0.9, 1.0, True),
        (1.0, 1.1, True),
    ],
)
def test_undecided(low: float, high: float, undecided: bool) -> None:
    assert Ratio(1.0, low, high).undecided == undecided


def test_spread() -> None:
    """Quartiles of 1 to 5 are 2 and 4, their median is 3."""
    assert spread(np.array([5.0, 1.0, 4.0, 2.0, 3.0])) == pytest.approx(2 / 3)
    assert spread(np.full(7, 0.3)) == 0.0
    seconds = np.random.default_rng(0).lognormal(size=50)
    assert spread(1000 * seconds) == pytest.approx(spread(seconds))
