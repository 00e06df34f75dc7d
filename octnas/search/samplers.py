"""Optuna's samplers, and one for what is proposed elsewhere."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from octnas.search.settings import SearchSettings


class ProposalSampler(BaseSampler):
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


def optuna_sampler(settings: SearchSettings, seed: int, number: int) -> BaseSampler:
    """Optuna's sampler for one ask; its random state follows from seed and trial number alone."""
    mixed = (seed * 1_000_003 + number) % 2**32
    if settings.sampler == "tpe":
        return TPESampler(seed=mixed, n_startup_trials=0, constant_liar=True)
    return NSGAIISampler(population_size=settings.population, seed=mixed)
