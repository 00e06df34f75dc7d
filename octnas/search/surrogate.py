"""A ridge model of the score of architectures, additive in the α of the sites.

The score is nearly additive: over all architectures of a small trained supernet such a model
explains nine tenths of the variance of the loss. So a few measured architectures are enough to
predict the others, and a second, cheaper measurement that is known of every architecture can be a
feature beside α and MACs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from octnas.space import SearchSpace

# Strengths of the penalty to choose from by leave-one-out error, on features of unit variance.
_PENALTIES = np.logspace(-2, 3, 21)


@dataclass(frozen=True)
class Surrogate:
    """A fitted model.

    Attributes:
        space: of its architectures.
        model: from features to the score.
    """

    space: SearchSpace
    model: Pipeline

    def predict(
        self, alphas: Sequence[Mapping[str, float]], others: Sequence[float] = ()
    ) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Predicted scores.

        Args:
            alphas: α by site of n architectures.
            others: what a second source says of each, if the model was fitted with one.

        Returns:
            Shape ``(n,)``.
        """
        predicted: np.ndarray[Any, Any] = self.model.predict(features(self.space, alphas, others))
        return predicted


def fit(
    space: SearchSpace,
    alphas: Sequence[Mapping[str, float]],
    scores: Sequence[float],
    others: Sequence[float] = (),
) -> Surrogate:
    """Fit a ridge model, its penalty chosen by leave-one-out error.

    Args:
        space: of the architectures.
        alphas: α by site of n architectures, at least two.
        scores: what was measured of each.
        others: what a second source says of each, as one more feature; empty for none.
    """
    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    return Surrogate(space, model.fit(features(space, alphas, others), np.asarray(scores)))


def features(
    space: SearchSpace, alphas: Sequence[Mapping[str, float]], others: Sequence[float] = ()
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """What a score is modelled by.

    Returns:
        Shape ``(n, features)``: the realised α of every searchable site; for each that may have
        no high channel at all, whether it has none, since what is lost there is lost for all that
        follow (without it, a model of the digits' ground truth ranks with a partial τ of .47, with
        it .71, left-out architectures); the share of vanilla's MACs; and a second source, if any.
    """
    names = [site.name for site in space.searchable]
    may_lose = [site.name for site in space.searchable if site.choices[-1] == 1]
    rows = []
    for entry in alphas:
        realised = space.realise(entry)
        share = space.cost(entry).macs / space.vanilla_macs
        lost = (float(realised[name] == 1) for name in may_lose)
        rows.append([*(realised[name] for name in names), *lost, share])
    columns = np.array(rows, dtype=np.float64)
    return np.column_stack([columns, others]) if len(others) else columns
