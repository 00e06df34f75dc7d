"""Times of functions that take turns, and what can be said about their ratios."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")


@dataclass(frozen=True)
class Ratio:
    """How much longer one function takes than another.

    Attributes:
        value: median of the ratios by round.
        low, high: its 95 % interval.
    """

    value: float
    low: float
    high: float

    @property
    def undecided(self) -> bool:
        """Whether the machine is too noisy to say which of the two is faster."""
        return self.low <= 1.0 <= self.high


def take_turns(
    functions: Mapping[Key, Callable[[], None]], repeats: int, warm_up: int = 2
) -> dict[Key, np.ndarray]:
    """Time functions one after the other, round by round.

    A machine that slows down for a while slows all of them down alike.

    Args:
        functions: each returns once its work is done.
        repeats: rounds that count.
        warm_up: rounds before those.

    Returns:
        Seconds of every round, shape ``(repeats,)``.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in functions}
    for round_number in range(warm_up + repeats):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number >= warm_up:
                seconds[key].append(time.perf_counter() - start)
    return {key: np.array(values) for key, values in seconds.items()}


def compare(seconds: np.ndarray, base: np.ndarray) -> Ratio:
    """The ratio of two functions that took turns, with an interval free of assumptions.

    The interval stands between two order statistics of the ratios by round, whose ranks are those
    of a sign test at 5 % in its normal approximation, corrected for continuity.

    Args:
        seconds, base: of every round, shape ``(rounds,)``.
    """
    by_round = np.sort(seconds / base)
    reach = 0.98 * np.sqrt(len(by_round))
    low = max(0, int(np.floor((len(by_round) - 1) / 2 - reach)))
    high = len(by_round) - 1 - low
    return Ratio(float(np.median(by_round)), float(by_round[low]), float(by_round[high]))


def spread(seconds: np.ndarray) -> float:
    """Distance of the quartiles as a share of the median."""
    first, median, third = np.quantile(seconds, [0.25, 0.5, 0.75])
    return float((third - first) / median)
