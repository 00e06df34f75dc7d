"""Whether one retrained network is better than another, or whether that is noise."""

from dataclasses import dataclass
from enum import StrEnum
from math import floor, sqrt
from typing import NamedTuple

from octnas.results import Retrained

# 0.975 quantiles of Student's t for 1 to 30 degrees of freedom; more count as 30, which widens the
# interval by at most 4 %.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Verdict(StrEnum):
    """What a comparison allows to say of the first network."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "smaller than the noise"
    ONE_SEED = "one seed"
    NO_SPREAD = "no spread"
    SAME = "same network"


class Noise(NamedTuple):
    """Standard error of a difference of means, and its degrees of freedom."""

    error: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval."""
        return T_975[min(max(floor(self.freedom), 1), len(T_975)) - 1] * self.error


@dataclass(frozen=True)
class Comparison:
    """Top-1 of one network against another's.

    Attributes:
        baseline: the other network.
        points: difference of the mean top-1 in percentage points.
        half_width: of the difference's 95 % interval, in points; None where none can be given.
        verdict: what may be said.
    """

    baseline: Retrained
    points: float
    half_width: float | None
    verdict: Verdict


def compare(network: Retrained, baseline: Retrained) -> Comparison:
    """Compare val top-1 over seeds with Welch's t interval of 95 %."""
    points = difference_points(network, baseline)
    if network.network.architecture.id == baseline.network.architecture.id:
        return Comparison(baseline, points, None, Verdict.SAME)
    noise = welch(network, baseline)
    if noise is None:
        return Comparison(baseline, points, None, Verdict.ONE_SEED)
    if noise.error == 0:
        return Comparison(baseline, points, None, Verdict.NO_SPREAD)
    half_width = 100 * noise.half_width
    if abs(points) <= half_width:
        verdict = Verdict.NOISE
    else:
        verdict = Verdict.BETTER if points > 0 else Verdict.WORSE
    return Comparison(baseline, points, half_width, verdict)


def difference_points(network: Retrained, baseline: Retrained) -> float:
    """Difference of the mean val top-1 in percentage points."""
    return 100 * (network.mean("val_top1") - baseline.mean("val_top1"))


def welch(network: Retrained, baseline: Retrained) -> Noise | None:
    """Noise of the difference of two means of val top-1; None if either has a single seed.

    Welch (1947): the variances need not be equal, nor the numbers of seeds.
    """
    squares: list[tuple[float, int]] = []
    for retrained in (network, baseline):
        std = retrained.std("val_top1")
        if std is None:
            return None
        squares.append((std**2 / len(retrained.runs), len(retrained.runs)))
    total = sum(square for square, _ in squares)
    if total == 0:
        return Noise(0.0, 1.0)
    freedom = total**2 / sum(square**2 / (count - 1) for square, count in squares)
    return Noise(sqrt(total), freedom)
