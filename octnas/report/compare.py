"""Whether one retrained network is better than another, or whether that is noise."""

from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import variance

from octnas.results import Retrained

CONFIDENCE = 0.95


class Verdict(StrEnum):
    """What a comparison allows to say of the first network."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "smaller than the noise"
    ONE_SEED = "one seed"
    NO_SPREAD = "no spread"
    SAME = "same network"


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
    stds = [network.std("val_top1"), baseline.std("val_top1")]
    if network.network.architecture.id == baseline.network.architecture.id:
        return Comparison(baseline, points, None, Verdict.SAME)
    if None in stds:
        return Comparison(baseline, points, None, Verdict.ONE_SEED)
    if not any(stds):
        return Comparison(baseline, points, None, Verdict.NO_SPREAD)
    half_width = 100 * _half_width(network.values("val_top1"), baseline.values("val_top1"))
    if abs(points) <= half_width:
        verdict = Verdict.NOISE
    else:
        verdict = Verdict.BETTER if points > 0 else Verdict.WORSE
    return Comparison(baseline, points, half_width, verdict)


def difference_points(network: Retrained, baseline: Retrained) -> float:
    """Difference of the mean val top-1 in percentage points."""
    return 100 * (network.mean("val_top1") - baseline.mean("val_top1"))


def _half_width(first: list[float], second: list[float]) -> float:
    """Half of the interval of a difference of means, with variances that may differ (Welch 1947).

    Written out, since scipy's `ttest_ind` warns where one side has no spread.
    """
    from scipy.stats import t

    squares = [(variance(values) / len(values), len(values)) for values in (first, second)]
    total = sum(square for square, _ in squares)
    freedom = total**2 / sum(square**2 / (count - 1) for square, count in squares)
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(total)
