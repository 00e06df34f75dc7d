"""Whether one retrained network is better than another, or whether that is noise."""

from dataclasses import dataclass
from enum import StrEnum

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
    """Half of the interval of a difference of means, with variances that may differ (Welch)."""
    from scipy.stats import ttest_ind

    interval = ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.high - interval.low) / 2
