"""Optuna's samplers, and one for what is proposed elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

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


class SiteBySite(BaseSampler):
    """Another sampler, which draws each site whatever was drawn before.

    A process that dies in the middle of a trial leaves some sites on disk. What goes on with the
    trial is not asked for them again, and one stream of random numbers would then be out of step.

    Args:
        make: the sampler for a stream.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self._make, self._whole = make, make(0)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The other sampler's."""
        if not isinstance(self._whole, NSGAIISampler):
            return self._whole.infer_relative_search_space(study, trial)
        # What Optuna finds by comparing all trials with each other, at every ask: here each has
        # the same sites.
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return dict(sorted(told[-1].distributions.items())) if told else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The other sampler's, from a generation's parents in the order of their numbers.

        The trial that chooses the parents would take them in another order than all that follow,
        and than the same trial gone on with.
        """
        if isinstance(self._whole, NSGAIISampler):
            generation = self._whole.get_trial_generation(study, trial)
            self._whole.get_parent_population(study, generation)
        return self._whole.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The other sampler's, with a stream of the site's own."""
        own = self._make(crc32(param_name.encode()))
        return own.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """The other sampler's."""
        self._whole.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """The other sampler's."""
        self._whole.after_trial(study, trial, state, values)


def optuna_sampler(settings: SearchSettings, seed: int, number: int) -> BaseSampler:
    """Optuna's sampler for one ask; its random state follows from seed and trial number alone."""

    def make(stream: int) -> BaseSampler:
        mixed = (seed * 1_000_003 + number + stream) % 2**32
        if settings.sampler == "tpe":
            return TPESampler(seed=mixed, n_startup_trials=0, constant_liar=True)
        return NSGAIISampler(population_size=settings.population, seed=mixed)

    return SiteBySite(make)
