"""Candidates that were drawn elsewhere, as a sampler of Optuna."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial


class DrawSampler(BaseSampler):
    """Proposes one architecture.

    Args:
        alphas: by searchable site, of each site's choices.
    """

    def __init__(self, alphas: Mapping[str, float]) -> None:
        self._alphas = alphas

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is left to Optuna."""
        del study, trial
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is left to Optuna."""
        del study, trial, search_space
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The site's α."""
        del study, trial, param_distribution
        return self._alphas[param_name]
