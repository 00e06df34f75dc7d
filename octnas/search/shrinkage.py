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
        candidates: all that were evaluated; those without `HALF`, which were scored on the first
            images only, count in the model, and keep their loss.

    Returns:
        The candidates, and the share of a residual that is the candidate's own (0 to 1); None
        where there are too few to tell, and every loss is expected as it is.
    """
    whole = [one for one in candidates if HALF in one.metrics]
    own: float | None = None
    expected = {one.id: one.loss for one in candidates}
    if len(whole) >= _FEWEST:
        losses = np.array([one.loss for one in whole])
        first = np.array([one.metrics[HALF] for one in whole])
        halves = first, 2 * losses - first
        own = _own(*(_residuals(features, whole, half, whole, half)[1] for half in halves))
        every = [one.loss for one in candidates]
        predicted, left = _residuals(features, candidates, every, whole, losses)
        shrunk = np.exp(predicted + own * left).tolist()
        expected |= {one.id: value for one, value in zip(whole, shrunk, strict=True)}
    found = [
        replace(one, metrics={**one.metrics, EXPECTED: expected[one.id]}) for one in candidates
    ]
    return found, own


def _residuals(
    features: Features,
    known: Sequence[Candidate],
    losses: Sequence[float] | Values,
    wanted: Sequence[Candidate],
    measured: Values,
) -> tuple[Values, Values]:
    """What a model of some losses says of others' logarithms, and what is left of these."""
    model = fit(features, log_scores([one.alphas for one in known], losses))
    alphas = [one.alphas for one in wanted]
    predicted = model.predict(alphas)
    return predicted, np.array(log_scores(alphas, measured).values) - predicted


def _own(first: Values, second: Values) -> float:
    """The share of the mean of two residuals that both have, by their covariance."""
    variance = float(np.var((first + second) / 2))
    if variance == 0:
        return 1.0
    return float(np.clip(np.mean(first * second) / variance, 0, 1))
