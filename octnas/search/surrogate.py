"""A Bayesian ridge model of the score of architectures, a sum over sites and neighbouring sites.

The score is nearly additive: over all architectures of a small trained supernet a sum over the
sites explains nine tenths of the variance of the loss, with neighbouring pairs nearly all of it.
So a few measured architectures are enough to predict the others; a second, cheaper measurement
that is known of every architecture can be a feature beside α and MACs; and the best architectures
of any draw from the model's posterior follow exactly, see `octnas.optimum`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge
from sklearn.preprocessing import StandardScaler

from octnas.additive import Terms, macs_of
from octnas.front import Candidate
from octnas.optimum import Scores as SiteScores
from octnas.optimum import ends
from octnas.space import SearchSpace

Values = np.ndarray[Any, np.dtype[np.float64]]
# A loss that has a logarithm.
_LEAST = 1e-9
# Measurements of a second source, of which its scale and its noise can be told.
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Features:
    """What a score is modelled by: columns, each a sum over sites and their choices.

    The realised α of every searchable site; for each that may have no high channel at all, whether
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

    def __call__(
        self, alphas: Sequence[Mapping[str, float]], others: Sequence[float] = ()
    ) -> Values:
        """The columns of some architectures, and a second source, if any.

        Args:
            alphas: α by site of n architectures; sites that are not named are at their first
                choice.
            others: what a second source says of each, as one more column; empty for none.

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
        matrix = np.column_stack(found).astype(np.float64)
        return np.column_stack([matrix, others]) if len(others) else matrix


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

    def predict(
        self, alphas: Sequence[Mapping[str, float]], others: Sequence[float] = ()
    ) -> Values:
        """Predicted scores, shape ``(n,)``; for the arguments see `Features`."""
        predicted: Values = self.model.predict(self.scaler.transform(self.features(alphas, others)))
        return predicted

    @property
    def mean(self) -> "Drawn":
        """The most probable model, of one that was fitted without a second source."""
        return Drawn(self.features, self.model.coef_ / self.scaler.scale_)

    def draw(self, rng: np.random.Generator) -> "Drawn":
        """A model drawn from the posterior, of one that was fitted without a second source."""
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


def fit(
    features: Features, scores: Scores, others: Sequence[float] = (), second: Scores | None = None
) -> Surrogate:
    """Fit a Bayesian ridge model (MacKay, Neural Computation 4(3), 1992).

    Noise and penalty are those that make the scores most probable. A second source counts as far
    as it agrees: what it says is brought to the scale of the first, by a straight line through
    what a model of the first alone predicts, and what is then left between them is its noise.

    Args:
        features: what the model is of.
        scores: at least two; with ``rows``, only if ``others`` is empty.
        others: what another source says of the same architectures, as one more feature; empty for
            none.
        second: scores of other architectures, on a scale of their own; without ``others``.
    """
    scaler = StandardScaler()
    rows = features(scores.alphas, others) if scores.rows is None else scores.rows
    scaled = scaler.fit_transform(rows)
    values = np.asarray(scores.values, dtype=np.float64)
    alone = Surrogate(features, scaler, BayesianRidge().fit(scaled, values))
    if second is None or len(second.values) < _FEWEST:
        return alone
    predicted, said = alone.predict(second.alphas), np.asarray(second.values)
    if predicted.std() == 0:
        return alone
    slope, offset = np.polyfit(predicted, said, 1)
    if slope <= 0:
        return alone
    residuals = (said - offset) / slope - predicted
    noise = float(residuals @ residuals) / (len(said) - 2)
    # One of the first source weighs 1.
    weight = 1 / max(noise * float(alone.model.alpha_), 1e-6)
    scaled = np.concatenate([scaled, scaler.transform(features(second.alphas))])
    targets = np.concatenate([values, (said - offset) / slope])
    weights = np.repeat([1.0, weight], [len(values), len(said)])
    return Surrogate(features, scaler, BayesianRidge().fit(scaled, targets, sample_weight=weights))
