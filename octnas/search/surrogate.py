"""A Bayesian ridge model of the score of architectures, a sum over sites and neighbouring sites.

The score is nearly additive: over all architectures of a small trained supernet a sum over the
sites explains nine tenths of the variance of the loss, with neighbouring pairs nearly all of it.
So a few measured architectures are enough to predict the others, and the best architectures of any
draw from the model's posterior follow exactly, see `octnas.space.optimum`.

What a candidate's loss will be on other images: its estimate, shrunk towards the surrogate's.

The best of many measured losses looks better than it is, since the images that it was measured on
are a sample. What a model of all candidates says of one of them has next to none of that luck, but
misses what is the candidate's own. How much of the difference is its own shows on two halves of the
images: what comes again there (the reliability of a test by its halves, Spearman and Brown, British
Journal of Psychology 3, 1910; shrinkage as by Stein's estimator, Efron and Morris, JASA 70, 1975).

The first of two rungs: who is scored on a part of the images only.

A candidate whose loss on the first images is so high that it cannot reach the front is not scored
on the others. What decides is the candidates that were told before its batch, so that any number
of workers decides alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge
from sklearn.preprocessing import StandardScaler

from octnas.results.front import Candidate
from octnas.space.cost_table import Terms, macs_of
from octnas.space.optimum import Scores as SiteScores
from octnas.space.optimum import ends
from octnas.space.search_space import SearchSpace

Values = np.ndarray[Any, np.dtype[np.float64]]
# A loss that has a logarithm.
_LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Features:
    """What a score is modelled by: columns, each a sum over sites and their choices.

    The quantized α of every searchable site; for each that may have no high channel at all, whether
    it has none, since what is lost there is lost for all that follow (without it, a model of the
    digits' ground truth ranks with a partial τ of .47, with it .71, left-out architectures); with
    ``pairs`` the square of each α and the products at the two ends of a convolution; and the
    convolutions' MACs as a share of vanilla's.

    Attributes:
        space: of the architectures.
        pairs: whether neighbouring sites have columns together, and single sites a curvature.
    """

    space: SearchSpace
    pairs: bool = False

    @cached_property
    def columns(self) -> list[Terms]:
        """The columns by the sites that they depend on."""
        choices = {site.name: np.array(site.choices) for site in self.space.searchable}
        found: list[Terms] = [{(name,): own} for name, own in choices.items()]
        found += [{(name,): own == 1} for name, own in choices.items() if own[-1] == 1]
        if self.pairs:
            found += [{(name,): own**2} for name, own in choices.items() if len(own) > 2]
            found += [
                {pair: np.multiply.outer(*(choices[name] for name in pair))}
                for pair in ends(self.space)
            ]
        macs = macs_of(self.space)
        return [*found, {sites: term / macs.vanilla for sites, term in macs.terms.items()}]

    def __call__(self, alphas: Sequence[Mapping[str, float]]) -> Values:
        """The columns of some architectures.

        Args:
            alphas: α by site of n architectures; sites that are not named are at their first
                choice.

        Returns:
            Shape ``(n, columns)``.
        """
        at = {
            site.name: np.array(
                [site.choices.index(one.get(site.name, site.choices[0])) for one in alphas]
            )
            for site in self.space.sites
        }
        found = [
            sum(np.asarray(term)[tuple(at[name] for name in sites)] for sites, term in one.items())
            for one in self.columns
        ]
        return np.column_stack(found).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted model.

    Attributes:
        features: what it is of.
        scaler: of the features, to unit variance.
        model: from scaled features to the score; its posterior is normal.
    """

    features: Features
    scaler: StandardScaler
    model: BayesianRidge

    def predict(self, alphas: Sequence[Mapping[str, float]]) -> Values:
        """Predicted scores, shape ``(n,)``; for the arguments see `Features`."""
        predicted: Values = self.model.predict(self.scaler.transform(self.features(alphas)))
        return predicted

    @property
    def mean(self) -> "Drawn":
        """The most probable model."""
        return Drawn(self.features, self.model.coef_ / self.scaler.scale_)

    def draw(self, rng: np.random.Generator) -> "Drawn":
        """A model drawn from the posterior."""
        around = self._spread @ rng.standard_normal(len(self._spread))
        return Drawn(self.features, (self.model.coef_ + around) / self.scaler.scale_)

    @cached_property
    def _spread(self) -> Values:
        """A matrix whose product with independent normal numbers has the posterior's covariance."""
        variances, axes = np.linalg.eigh(self.model.sigma_)
        spread: Values = axes * np.sqrt(variances.clip(min=0))
        return spread


@dataclass(frozen=True, eq=False)
class Drawn:
    """One additive score out of all that are probable.

    Attributes:
        features: what it weighs.
        weights: of the features.
    """

    features: Features
    weights: Values

    def __call__(self, alphas: Sequence[Mapping[str, float]]) -> Values:
        """Scores of architectures, up to a constant, shape ``(n,)``."""
        scores: Values = self.features(alphas) @ self.weights
        return scores

    @property
    def scores(self) -> SiteScores:
        """The same by sites and their choices; the lower, the better the architecture."""
        found: dict[tuple[str, ...], Values] = {}
        for weight, terms in zip(self.weights, self.features.columns, strict=True):
            for sites, term in terms.items():
                found[sites] = found.get(sites, 0.0) + weight * np.asarray(term, dtype=np.float64)
        return found


@dataclass(frozen=True)
class Scores:
    """What one source says of some architectures.

    Attributes:
        alphas: α by site of n architectures.
        values: the score of each.
        rows: their features, shape ``(n, columns)``, if they are known.
    """

    alphas: Sequence[Mapping[str, float]]
    values: Sequence[float]
    rows: Values | None = None


def log_scores(
    alphas: Sequence[Mapping[str, float]],
    losses: Sequence[float] | Values,
    rows: Values | None = None,
) -> Scores:
    """Scores that are the logarithms of losses, which sites change by factors."""
    return Scores(alphas, np.log(np.maximum(losses, _LEAST)).tolist(), rows)


def scores_of(candidates: Sequence[Candidate], rows: Values | None = None) -> Scores:
    """The same of candidates."""
    return log_scores([one.alphas for one in candidates], [one.loss for one in candidates], rows)


def fit(features: Features, scores: Scores) -> Surrogate:
    """Fit a Bayesian ridge model (MacKay, Neural Computation 4(3), 1992).

    Noise and penalty are those that maximise the evidence.

    Args:
        features: what the model is of.
        scores: at least two.
    """
    scaler = StandardScaler()
    rows = features(scores.alphas) if scores.rows is None else scores.rows
    scaled = scaler.fit_transform(rows)
    values = np.asarray(scores.values, dtype=np.float64)
    return Surrogate(features, scaler, BayesianRidge().fit(scaled, values))


FIRST, SHARE = "first_loss", "share"
"""Metrics of a candidate: its loss on the first images, and the share of all that were scored."""

# Wholly scored candidates, of which noise can be told; and how much of it counts as chance.
_FEWEST_WHOLE, _DEVIATIONS = 8, 2.0


@dataclass(frozen=True)
class Rung:
    """What a loss on the first images says of the loss on all of them.

    Attributes:
        offset: by how much it is higher, on average.
        margin: by how much it may be higher by chance.
        whole: cost and loss of the candidates that were scored on all images, ascending in cost.
    """

    offset: float
    margin: float
    whole: tuple[tuple[int, float], ...]

    def limit(self, cost: int) -> float:
        """The highest loss on the first images with which a candidate may reach the front."""
        best = min((loss for other, loss in self.whole if other <= cost), default=inf)
        return best + self.offset + self.margin


def rung_of(told: Sequence[Candidate], cost: Callable[[Candidate], int]) -> Rung | None:
    """The rung after some candidates were told; None after too few."""
    whole = [one for one in told if one.metrics.get(f"rank_{SHARE}") == 1]
    if len(whole) < _FEWEST_WHOLE:
        return None
    higher = np.array([one.metrics[f"rank_{FIRST}"] - one.loss for one in whole])
    margin = _DEVIATIONS * float(higher.std(ddof=1))
    return Rung(float(higher.mean()), margin, tuple(sorted((cost(one), one.loss) for one in whole)))


def expected_loss(outcome: Mapping[str, float], rung: Rung | None) -> float:
    """The loss on all images, as far as the outcome tells it."""
    if rung is None or outcome.get(SHARE, 1) == 1:
        return outcome["loss"]
    return outcome["loss"] - rung.offset


HALF = "rank_half_loss"
"""Metric of a candidate: its loss on one half of the images, drawn evenly."""

EXPECTED = "expected_loss"
"""Metric of a candidate: the loss that other images will show, as far as can be told."""

# Candidates that the two halves are compared on at least.
_FEWEST_HALVED = 16


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
    if len(halved) >= _FEWEST_HALVED:
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
