"""A model of the loss of architectures, with shrinkage and screening.

The loss is nearly additive: over all architectures of a small trained supernet, a sum over the
sites explains nine tenths of its variance, and with pairs of neighbouring sites nearly all of it.
So a few evaluated architectures are enough for a Bayesian ridge model that predicts the others, and
the best architectures of any draw from its posterior follow exactly, see `octnas.space.optimum`.

Shrinkage: the best of many measured losses is biased downwards, because the images are a
sample. The prediction of the model has next to none of that luck, but misses what is specific to
the candidate. Two halves of the images tell how much of a residual is specific: what shows on both
(split-half reliability, Spearman and Brown, British Journal of Psychology 3, 1910; shrinkage as by
Stein's estimator, Efron and Morris, JASA 70, 1975).

Screening: a candidate whose loss on the first images is too high for the front is not scored on the
others. Only candidates that were reported before its batch count, so that any number of workers
decides alike.
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
from octnas.space.optimum import Scores, ends
from octnas.space.search_space import SearchSpace

Values = np.ndarray[Any, np.dtype[np.float64]]

FIRST, SHARE = "first_loss", "share"
"""Metrics of an evaluation: the loss on the first images, and the share of all that were scored."""

HALF = "rank_half_loss"
"""Metric of a candidate: its loss on one half of the images, drawn evenly."""

EXPECTED = "expected_loss"
"""Metric of a candidate: an estimate of its loss on other images."""

# The smallest loss whose logarithm is taken.
_LEAST = 1e-9
# Fully scored candidates that screening needs, and how many standard deviations count as chance.
_FEWEST_WHOLE, _DEVIATIONS = 8, 2.0
# Candidates with two halves that shrinkage needs.
_FEWEST_HALVED = 16


@dataclass(frozen=True, eq=False)
class Features:
    """What the loss is modelled by: columns, each a sum over sites and their choices.

    The quantized α of every searchable site; for each that may have no high channel at all, whether
    it has none, since detail lost there is lost for all later layers (a model of the digits' ground
    truth ranks left-out architectures with a partial τ of .47 without it, of .71 with it); with
    ``pairs`` the square of each α and the products at the two ends of a convolution; and the
    convolutions' MACs as a share of vanilla's.

    Attributes:
        space: of the architectures.
        pairs: whether to add the squares and products.
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
            alphas: α by site of n architectures; missing sites are at their first choice.

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
class Drawn:
    """One additive score of architectures, with a weight per feature; lower is better."""

    features: Features
    weights: Values

    def __call__(self, alphas: Sequence[Mapping[str, float]]) -> Values:
        """Scores of architectures, up to a constant, shape ``(n,)``."""
        scores: Values = self.features(alphas) @ self.weights
        return scores

    @property
    def scores(self) -> Scores:
        """The same by sites and their choices."""
        found: dict[tuple[str, ...], Values] = {}
        for weight, terms in zip(self.weights, self.features.columns, strict=True):
            for sites, term in terms.items():
                found[sites] = found.get(sites, 0.0) + weight * np.asarray(term, dtype=np.float64)
        return found


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted model of the logarithm of the loss.

    Attributes:
        scaler: of the features, to unit variance.
        model: from scaled features to the score; its posterior is normal.
    """

    features: Features
    scaler: StandardScaler
    model: BayesianRidge

    def predict(self, rows: Values) -> Values:
        """Logarithms of the losses, shape ``(n,)``, from features, shape ``(n, columns)``."""
        predicted: Values = self.model.predict(self.scaler.transform(rows))
        return predicted

    @property
    def mean(self) -> Drawn:
        """The most probable score."""
        return Drawn(self.features, self.model.coef_ / self.scaler.scale_)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A score drawn from the posterior."""
        around = self._root @ rng.standard_normal(len(self._root))
        return Drawn(self.features, (self.model.coef_ + around) / self.scaler.scale_)

    @cached_property
    def _root(self) -> Values:
        """A square root of the posterior's covariance."""
        variances, axes = np.linalg.eigh(self.model.sigma_)
        root: Values = axes * np.sqrt(variances.clip(min=0))
        return root


def fit(features: Features, rows: Values, losses: Sequence[float] | Values) -> Surrogate:
    """Fit a Bayesian ridge model (MacKay, Neural Computation 4(3), 1992).

    Noise and penalty are those that maximise the evidence.

    Args:
        features: of the model.
        rows: features of two or more architectures, shape ``(n, columns)``.
        losses: of the same.
    """
    scaler = StandardScaler()
    scaled = scaler.fit_transform(rows)
    return Surrogate(features, scaler, BayesianRidge().fit(scaled, _log(losses)))


def fit_candidates(features: Features, candidates: Sequence[Candidate]) -> Surrogate:
    """Fit the model to the losses of candidates."""
    rows = features([one.alphas for one in candidates])
    return fit(features, rows, [one.loss for one in candidates])


def _log(losses: Sequence[float] | Values) -> Values:
    # Sites change the loss by factors.
    logarithms: Values = np.log(np.maximum(losses, _LEAST))
    return logarithms


@dataclass(frozen=True)
class Screening:
    """Decides from the loss on the first images whether to score a candidate on the others.

    Attributes:
        offset: mean difference between the loss on the first images and that on all.
        margin: what the difference may be above that by chance.
        whole: cost and loss of the fully scored candidates, ascending in cost.
    """

    offset: float
    margin: float
    whole: tuple[tuple[int, float], ...]

    @staticmethod
    def after(
        candidates: Sequence[Candidate], cost: Callable[[Candidate], int]
    ) -> "Screening | None":
        """The screening after some candidates; None after too few."""
        whole = [one for one in candidates if one.metrics.get(f"rank_{SHARE}") == 1]
        if len(whole) < _FEWEST_WHOLE:
            return None
        higher = np.array([one.metrics[f"rank_{FIRST}"] - one.loss for one in whole])
        margin = _DEVIATIONS * float(higher.std(ddof=1))
        points = tuple(sorted((cost(one), one.loss) for one in whole))
        return Screening(float(higher.mean()), margin, points)

    def limit(self, cost: int) -> float:
        """The highest loss on the first images with which a candidate may reach the front."""
        best = min((loss for other, loss in self.whole if other <= cost), default=inf)
        return best + self.offset + self.margin


def expected_loss(metrics: Mapping[str, float], screening: Screening | None) -> float:
    """The loss on all images, estimated where only the first were scored."""
    if screening is None or metrics.get(SHARE, 1) == 1:
        return metrics["loss"]
    return metrics["loss"] - screening.offset


def with_expected_losses(
    features: Features, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], float | None]:
    """Candidates with their `EXPECTED` loss.

    Args:
        features: of the model that losses are shrunk towards.
        candidates: all that were evaluated; one that was scored on a share of the images is shrunk
            more.

    Returns:
        The candidates, and the shrinkage weight of their residuals (0 to 1); None where there are
        too few to tell, and every loss is expected as measured.
    """
    halved = [one for one in candidates if HALF in one.metrics]
    weight: float | None = None
    expected = [one.loss for one in candidates]
    if len(halved) >= _FEWEST_HALVED:
        losses = np.array([one.loss for one in halved])
        first = np.array([one.metrics[HALF] for one in halved])
        weight = _weight(
            *(_residuals(features, halved, half) for half in (first, 2 * losses - first))
        )
        residuals = _residuals(features, candidates, expected)
        shares = np.array([one.metrics.get(f"rank_{SHARE}", 1.0) for one in candidates])
        expected = np.exp(_log(expected) - (1 - _kept(weight, shares)) * residuals).tolist()
    found = [
        replace(one, metrics={**one.metrics, EXPECTED: value})
        for one, value in zip(candidates, expected, strict=True)
    ]
    return found, weight


def _residuals(
    features: Features, candidates: Sequence[Candidate], losses: Sequence[float] | Values
) -> Values:
    """Logarithms of losses minus the prediction of a model fitted to them."""
    rows = features([one.alphas for one in candidates])
    return _log(losses) - fit(features, rows, losses).predict(rows)


def _weight(first: Values, second: Values) -> float:
    """The share of the variance of the mean of two residuals that both have in common."""
    variance = float(np.var((first + second) / 2))
    if variance == 0:
        return 1.0
    return float(np.clip(np.mean(first * second) / variance, 0, 1))


def _kept(weight: float, shares: Values) -> Values:
    """The weights of residuals measured on shares of the images.

    Their noise has a variance of (1 − weight) / share where that of all images is 1 − weight.
    """
    kept: Values = weight / np.maximum(weight + (1 - weight) / shares, 1e-12)
    return kept
