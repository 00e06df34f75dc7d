"""A Bayesian ridge model of the score of architectures, a sum over sites and neighbouring sites.

The score is nearly additive: over all architectures of a small trained supernet a sum over the
sites explains nine tenths of the variance of the loss, with neighbouring pairs nearly all of it.
So a few measured architectures are enough to predict the others; a second, cheaper measurement
that is known of every architecture can be a feature beside α and MACs; and the best architectures
of any draw from the model's posterior follow exactly, see `octnas.optimum`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge
from sklearn.preprocessing import StandardScaler

from octnas.additive import Terms, macs_of
from octnas.optimum import Scores, ends
from octnas.space import SearchSpace

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted model.

    Attributes:
        space: of its architectures.
        pairs: whether neighbouring sites have features together.
        scaler: of the features, to unit variance.
        model: from scaled features to the score; its posterior is normal.
    """

    space: SearchSpace
    pairs: bool
    scaler: StandardScaler
    model: BayesianRidge

    def predict(
        self, alphas: Sequence[Mapping[str, float]], others: Sequence[float] = ()
    ) -> Values:
        """Predicted scores.

        Args:
            alphas: α by site of n architectures.
            others: what a second source says of each, if the model was fitted with one.

        Returns:
            Shape ``(n,)``.
        """
        columns = features(self.space, alphas, others, pairs=self.pairs)
        predicted: Values = self.model.predict(self.scaler.transform(columns))
        return predicted

    def draw(self, rng: np.random.Generator) -> "Drawn":
        """A model drawn from the posterior, of one that was fitted without a second source."""
        drawn = rng.multivariate_normal(self.model.coef_, self.model.sigma_, method="eigh")
        return Drawn(self.space, self.pairs, drawn / self.scaler.scale_)


@dataclass(frozen=True, eq=False)
class Drawn:
    """One additive score out of all that are probable.

    Attributes:
        space: of its architectures.
        pairs: whether neighbouring sites have features together.
        weights: of the features.
    """

    space: SearchSpace
    pairs: bool
    weights: Values

    def __call__(self, alphas: Sequence[Mapping[str, float]]) -> Values:
        """Scores of architectures, up to a constant, shape ``(n,)``."""
        scores: Values = features(self.space, alphas, pairs=self.pairs) @ self.weights
        return scores

    @property
    def scores(self) -> Scores:
        """The same by sites and their choices; the lower, the better the architecture."""
        found: dict[tuple[str, ...], Values] = {}
        for weight, terms in zip(self.weights, columns(self.space, pairs=self.pairs), strict=True):
            for sites, term in terms.items():
                found[sites] = found.get(sites, 0.0) + weight * np.asarray(term, dtype=np.float64)
        return found


def fit(
    space: SearchSpace,
    alphas: Sequence[Mapping[str, float]],
    scores: Sequence[float],
    others: Sequence[float] = (),
    *,
    pairs: bool = False,
) -> Surrogate:
    """Fit a Bayesian ridge model (MacKay, Neural Computation 4(3), 1992).

    Noise and penalty are those that make the scores most probable.

    Args:
        space: of the architectures.
        alphas: α by site of n architectures, at least two.
        scores: what was measured of each.
        others: what a second source says of each, as one more feature; empty for none.
        pairs: whether neighbouring sites have features together, and single sites a curvature.
    """
    scaler = StandardScaler()
    scaled = scaler.fit_transform(features(space, alphas, others, pairs=pairs))
    return Surrogate(space, pairs, scaler, BayesianRidge().fit(scaled, np.asarray(scores)))


def columns(space: SearchSpace, *, pairs: bool = False) -> list[Terms]:
    """What a score is modelled by, each a sum over sites and their choices.

    The realised α of every searchable site; for each that may have no high channel at all, whether
    it has none, since what is lost there is lost for all that follow (without it, a model of the
    digits' ground truth ranks with a partial τ of .47, with it .71, left-out architectures); with
    ``pairs`` the square of each α and the products at the two ends of a convolution; and the
    convolutions' MACs as a share of vanilla's.
    """
    choices = {site.name: np.array(site.choices) for site in space.searchable}
    found: list[Terms] = [{(name,): own} for name, own in choices.items()]
    found += [{(name,): own == 1} for name, own in choices.items() if own[-1] == 1]
    if pairs:
        found += [{(name,): own**2} for name, own in choices.items() if len(own) > 2]
        found += [{pair: np.multiply.outer(*(choices[n] for n in pair))} for pair in ends(space)]
    macs = macs_of(space)
    return [*found, {sites: term / macs.vanilla for sites, term in macs.terms.items()}]


def features(
    space: SearchSpace,
    alphas: Sequence[Mapping[str, float]],
    others: Sequence[float] = (),
    *,
    pairs: bool = False,
) -> Values:
    """The columns of some architectures, and a second source, if any.

    Returns:
        Shape ``(n, features)``.
    """
    realised = [space.realise(entry) for entry in alphas]
    at = {
        site.name: np.array([site.choices.index(entry[site.name]) for entry in realised])
        for site in space.sites
    }
    found = [
        sum(np.asarray(term)[tuple(at[name] for name in sites)] for sites, term in terms.items())
        for terms in columns(space, pairs=pairs)
    ]
    matrix = np.column_stack(found).astype(np.float64)
    return np.column_stack([matrix, others]) if len(others) else matrix
