"""What a candidate's loss will be on other images: its estimate, shrunk towards the surrogate's.

The best of many measured losses looks better than it is, since the images that it was measured on
are a sample. What a model of all candidates says of one of them has next to none of that luck, but
misses what is the candidate's own. How much of the difference is its own shows on two halves of the
images: what comes again there (the reliability of a test by its halves, Spearman and Brown, British
Journal of Psychology 3, 1910; shrinkage as by Stein's estimator, Efron and Morris, JASA 70, 1975).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from octnas.front import Candidate
from octnas.search.rungs import SHARE
from octnas.search.surrogate import Features, Values, fit, log_scores

HALF = "rank_half_loss"
"""Metric of a candidate: its loss on one half of the images, drawn evenly."""

EXPECTED = "expected_loss"
"""Metric of a candidate: the loss that other images will show, as far as can be told."""

# Candidates that the two halves are compared on at least.
_FEWEST = 16


def with_expected_losses(
    features: Features, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], float | None]:
    """Candidates with their `EXPECTED` loss.

    Args:
        features: of the model that losses are shrunk towards.
        candidates: all that were evaluated; one that was scored on a share of the images only is
            shrunk the more.

    Returns:
        The candidates, and the share of a residual that is the candidate's own (0 to 1); None
        where there are too few to tell, and every loss is expected as it is.
    """
    halved = [one for one in candidates if HALF in one.metrics]
    own: float | None = None
    expected = [one.loss for one in candidates]
    if len(halved) >= _FEWEST:
        losses = np.array([one.loss for one in halved])
        first = np.array([one.metrics[HALF] for one in halved])
        own = _own(*(_residuals(features, halved, half) for half in (first, 2 * losses - first)))
        left = _residuals(features, candidates, expected)
        shares = np.array([one.metrics.get(f"rank_{SHARE}", 1.0) for one in candidates])
        measured = log_scores([one.alphas for one in candidates], expected).values
        expected = np.exp(measured - (1 - _kept(own, shares)) * left).tolist()
    found = [
        replace(one, metrics={**one.metrics, EXPECTED: value})
        for one, value in zip(candidates, expected, strict=True)
    ]
    return found, own


def _residuals(
    features: Features, candidates: Sequence[Candidate], losses: Sequence[float] | Values
) -> Values:
    """What a model of the logarithms of losses leaves of them."""
    alphas = [one.alphas for one in candidates]
    scores = log_scores(alphas, losses)
    return np.array(scores.values) - fit(features, scores).predict(alphas)


def _kept(own: float, shares: Values) -> Values:
    """What is kept of residuals that were measured on shares of the images.

    Their noise has a variance of (1 − own) / share where that of all images is 1 − own.
    """
    kept: Values = own / np.maximum(own + (1 - own) / shares, 1e-12)
    return kept


def _own(first: Values, second: Values) -> float:
    """The share of the mean of two residuals that both have, by their covariance."""
    variance = float(np.var((first + second) / 2))
    if variance == 0:
        return 1.0
    return float(np.clip(np.mean(first * second) / variance, 0, 1))
