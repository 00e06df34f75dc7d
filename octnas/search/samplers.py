"""Optuna's samplers, and one for what is proposed elsewhere.

Samplers that know the space: each proposes one architecture, from what was told before.

Every proposal is decided by the seed, the number of its trial and the candidates told until then.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from octnas.results.front import Candidate, Front
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.surrogate import Drawn, Features, Surrogate, Values, fit, scores_of
from octnas.space.cost_table import CostLevels
from octnas.space.optimum import best_front


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


# Streams of random numbers.
_RANDOM, _SURROGATE = 1, 2
# Architectures of a drawn model's front that are compared, and models until one is new.
_FRONT, _MODELS = 48, 8
# Candidates that a model is fitted to at least.
_FEWEST = 2
# Uniform draws for something new: so many times those that are expected to bring it, where a range
# is all but evaluated; and at most.
_TRIES, _MOST_TRIES = 10, 20_000


@dataclass(frozen=True)
class History:
    """What a sampler may know when it proposes.

    Attributes:
        number: of the trial.
        told: the candidates that were told before its batch, without the failed ones.
        taken: all architectures that were proposed before it, see `SearchSpace.key`.
    """

    number: int
    told: Sequence[Candidate]
    taken: Collection[tuple[float, ...]]


Ranges = Sequence[tuple[int, int]]
"""Of a cost, both ends included; ascending, and apart from each other."""

Propose = Callable[[History], Mapping[str, float]]
"""The α by site that a trial evaluates."""


def proposals(
    sampler: Sampler,
    levels: CostLevels,
    within: Ranges,
    seed: int,
) -> Propose | None:
    """What ``random`` and ``surrogate`` propose; None for other samplers.

    Args:
        sampler: its name.
        levels: the architectures by what is made small beside the loss.
        within: ranges in its unit, both ends included, ascending.
        seed: of the draws.
    """
    if sampler == "random":
        return random_proposals(levels, within, seed)
    if sampler == "surrogate":
        return surrogate_proposals(levels, within, seed)
    return None


def random_proposals(levels: CostLevels, within: Ranges, seed: int) -> Propose:
    """Every architecture within the ranges with the same probability, exactly.

    Args:
        levels: the architectures by what is made small beside the loss.
        within: ranges in its unit, both ends included, ascending.
        seed: of the draws.
    """

    def propose(history: History) -> dict[str, float]:
        rng = np.random.default_rng((_RANDOM, seed, history.number))
        return _drawn(levels, within, rng)

    return propose


def surrogate_proposals(levels: CostLevels, within: Ranges, seed: int) -> Propose:
    """What a model of the score finds best that was not proposed before.

    Each trial draws a model from the posterior (Thompson, Biometrika 25, 1933), solves its front
    within the ranges exactly, and takes the architecture there that adds most to the hypervolume
    of the candidates, as that model sees all of them.

    Args:
        levels: the architectures by what is made small beside the loss.
        within: ranges in its unit, both ends included, ascending.
        seed: of the draws.
    """
    fitted: dict[int, tuple[Surrogate, _Known]] = {}
    features = Features(levels.space, pairs=True)
    known_of = _once_for_each(levels, features)

    def propose(history: History) -> dict[str, float]:
        rng, told = np.random.default_rng((_SURROGATE, seed, history.number)), history.told
        if len(told) < _FEWEST:
            return _new(levels, within, rng, history)
        if len(told) not in fitted:
            fitted.clear()
            known = known_of(told)
            model = fit(features, scores_of(told, known.rows))
            fitted[len(told)] = model, known
        model, known = fitted[len(told)]
        for _ in range(_MODELS):
            found = _best_new(levels, within, model.draw(rng), known, history.taken)
            if found is not None:
                return found
        return _new(levels, within, rng, history)

    return propose


@dataclass(frozen=True, eq=False)
class _Known:
    """The candidates that a model was fitted to.

    Attributes:
        rows: their features, shape ``(n, columns)``.
        costs: shape ``(n,)``.
    """

    rows: Values
    costs: Values

    def front(self, values: Values) -> list[Candidate]:
        """Those that none as cheap beats, as a model sees them; shape of the values ``(n,)``."""
        order = np.lexsort((values, self.costs))
        best = np.minimum.accumulate(values[order])
        kept = order[np.flatnonzero(np.diff(best, prepend=np.inf) < 0)]
        return [
            Candidate("known", {}, int(self.costs[index]), float(values[index])) for index in kept
        ]


def _once_for_each(
    levels: CostLevels, features: Features
) -> Callable[[Sequence[Candidate]], _Known]:
    """What is known of candidates, worked out once for each."""
    found: dict[str, tuple[Values, int]] = {}

    def known_of(told: Sequence[Candidate]) -> _Known:
        new = [one for one in told if one.id not in found]
        made = features([one.alphas for one in new]) if new else ()
        for one, row in zip(new, made, strict=True):
            found[one.id] = row, levels.cost.of(one.alphas)
        rows, costs = zip(*(found[one.id] for one in told), strict=True)
        return _Known(np.stack(rows), np.array(costs, float))

    return known_of


def _best_new(
    levels: CostLevels,
    within: Ranges,
    model: Drawn,
    known: _Known,
    taken: Collection[tuple[float, ...]],
) -> dict[str, float] | None:
    """The architecture on a model's front that adds most; None if all were proposed before."""
    scores = {sites: -score for sites, score in model.scores.items()}
    front = [
        alphas
        for low, high in within
        for alphas in best_front(levels, scores, low, high, most=_FRONT)
        if levels.space.key(alphas) not in taken
    ]
    if not front:
        return None
    before, values = known.rows @ model.weights, model(front)
    reference = (float(within[-1][1] + 1), float(max(before.max(), values.max())) + 1e-9)
    best = known.front(before)
    gains = [
        Front.of([*best, Candidate("new", alphas, levels.cost.of(alphas), value)])
        for alphas, value in zip(front, values.tolist(), strict=True)
    ]
    return dict(front[int(np.argmax([one.hypervolume(reference) for one in gains]))])


def _new(
    levels: CostLevels, within: Ranges, rng: np.random.Generator, history: History
) -> dict[str, float]:
    """Any architecture that was not proposed before, unless there is none, all but surely."""
    inside = sum(levels.count(*one) for one in within)
    tries = _TRIES * inside / max(1.0, inside - len(history.taken))
    for _ in range(int(min(max(tries, _TRIES), _MOST_TRIES))):
        alphas = _drawn(levels, within, rng)
        if levels.space.key(alphas) not in history.taken:
            break
    return alphas


def _drawn(levels: CostLevels, within: Ranges, rng: np.random.Generator) -> dict[str, float]:
    """An architecture within the ranges, all with the same probability."""
    bounds = within[0]
    if len(within) > 1:
        counts = np.array([levels.count(*one) for one in within])
        bounds = within[int(rng.choice(len(within), p=counts / counts.sum()))]
    return levels.sample(rng, *bounds, by_count=True)
