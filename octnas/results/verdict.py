"""Whether one trained network is better than another, or whether that is noise.

A difference of two accuracies depends on the seeds and on the images. The interval covers other
seeds and other images of the same kind. With few seeds, a percentile bootstrap over them is too
narrow (for three seeds a 95 % interval covers about four fifths), so seeds enter by Student's t
with the degrees of freedom of Welch and Satterthwaite (Welch, Biometrika 34, 1947), and images by
the variance of a bootstrap over them, which for a mean has a closed form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from typing import Any

import numpy as np
from scipy.stats import t

Matrix = np.ndarray[Any, np.dtype[np.float64]]

POWER = 0.8
"""Probability of seeing a difference of the size called detectable."""


class Verdict(StrEnum):
    """What a comparison says about the first network."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "smaller than the noise"
    ONE_SEED = "one seed"
    NO_SPREAD = "no spread"
    SAME = "same network"


@dataclass(frozen=True)
class Difference:
    """A difference of two mean accuracies, in percentage points.

    Attributes:
        points: of the first minus the second.
        half_width: of its interval; None if there is none.
        detectable: the smallest true difference that these seeds and images would show with a
            probability of `POWER`; None if there is no interval.
        verdict: the conclusion.
    """

    points: float
    half_width: float | None
    detectable: float | None
    verdict: Verdict


def difference(first: Matrix, second: Matrix, confidence: float = 0.95) -> Difference:
    """Compare two networks, or a network with several.

    Args:
        first, second: whether each image was right, shape ``(trainings, images)``, of the same
            images in the same order; or each training's accuracy alone, shape ``(trainings, 1)``.
            Rows may also be several networks, each with its mean over seeds.
        confidence: of the interval; higher for simultaneous comparisons.
    """
    points = 100 * float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Difference(points, None, None, Verdict.ONE_SEED)
    parts = [_of_seeds(first), _of_seeds(second), _of_images(first, second)]
    variance = sum(square for square, _ in parts)
    if variance == 0:
        return Difference(points, None, None, Verdict.NO_SPREAD)
    freedom = variance**2 / sum(square**2 / count for square, count in parts if square)
    error = 100 * sqrt(variance)
    quantile = float(t.ppf((1 + confidence) / 2, freedom))
    half_width = quantile * error
    detectable = (quantile + float(t.ppf(POWER, freedom))) * error
    if abs(points) <= half_width:
        return Difference(points, half_width, detectable, Verdict.NOISE)
    verdict = Verdict.BETTER if points > 0 else Verdict.WORSE
    return Difference(points, half_width, detectable, verdict)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """A mean over seeds and half of its interval by Student's t; None with one value."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return float(found.mean()), None
    error = float(found.std(ddof=1)) / sqrt(len(found))
    return float(found.mean()), float(t.ppf((1 + confidence) / 2, len(found) - 1)) * error


def _of_seeds(correct: Matrix) -> tuple[float, int]:
    """Variance of a mean accuracy by other trainings, and its degrees of freedom."""
    return float(correct.mean(axis=1).var(ddof=1)) / len(correct), len(correct) - 1


def _of_images(first: Matrix, second: Matrix) -> tuple[float, int]:
    """Variance of a difference by other images, and its degrees of freedom.

    Without the interaction of trainings and images, which the variance of the trainings includes.
    """
    count = first.shape[1]
    if count == 1 or first.shape[1] != second.shape[1]:
        return 0.0, 1
    between = float((first.mean(axis=0) - second.mean(axis=0)).var(ddof=1)) / count
    within = sum(float(one.var(axis=0, ddof=1).mean()) / len(one) for one in (first, second))
    return max(0.0, between - within / count), count - 1
