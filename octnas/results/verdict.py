"""Whether one trained network is better than another, or whether that is noise.

A difference of two accuracies is of some seeds and of some images. The interval covers both: other
seeds, and other images of the same kind. With as few seeds as anybody trains, a percentile
bootstrap over them is too narrow (of three seeds it covers about four fifths where it says 95 %),
so seeds come in by Student's t with the degrees of freedom of Welch and Satterthwaite (Welch,
Biometrika 34, 1947), and images by the variance that a bootstrap over them has, which for a mean is
known without drawing.
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
"""With which probability a difference of the size called detectable would have been seen."""


class Verdict(StrEnum):
    """What a comparison allows to say of the first network."""

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
        points: of the first less the second.
        half_width: of its interval; None where none can be given.
        detectable: the smallest true difference that so many seeds and images would have shown
            with a probability of `POWER`; None where there is no interval.
        verdict: what may be said.
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
            Instead of trainings several networks may follow each other, each with its mean over
            seeds.
        confidence: of the interval; higher where several comparisons are made at once.
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

    Without what single trainings do differently on single images: the trainings' variance has it.
    """
    count = first.shape[1]
    if count == 1 or first.shape[1] != second.shape[1]:
        return 0.0, 1
    between = float((first.mean(axis=0) - second.mean(axis=0)).var(ddof=1)) / count
    within = sum(float(one.var(axis=0, ddof=1).mean()) / len(one) for one in (first, second))
    return max(0.0, between - within / count), count - 1
