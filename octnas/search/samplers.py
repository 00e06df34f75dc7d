"""What a search evaluates: the first candidates, own samplers, and Optuna's.

Every proposal follows from the seed, the number of its trial and the candidates that were reported
before its batch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from octnas.results.front import Candidate, hypervolume
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.surrogate import Drawn, Features, Surrogate, Values, fit
from octnas.space.budgets import Region
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.optimum import best_front
from octnas.space.search_space import SearchSpace

LEARNED = "learned"
UNIFORM = "uniform"
SPREAD = "spread"

Key = tuple[float, ...]
"""An architecture of the space, see `SearchSpace.key`."""

Inside = np.ndarray[Any, np.dtype[np.bool_]]

Design = Sequence[tuple[str, Mapping[str, float]]]
"""Origin and α by site of the first candidates."""

Propose = Callable[[int, Sequence[Candidate], Collection[Key]], Mapping[str, float]]
"""Returns the α by site that a trial evaluates.

Called with the number of the trial, the candidates that were reported before its batch, and all
architectures that were proposed before.
"""

# Streams of random numbers.
_RANDOM, _SURROGATE = 1, 2
# Architectures of a drawn model's front that are compared, and models until one is new.
_FRONT, _MODELS = 48, 8
# Candidates that a model needs.
_FEWEST = 2
# Uniform draws for a new architecture: a multiple of the expected number, and the most.
_TRIES, _MOST_TRIES = 10, 20_000


def bounds(budgets: Sequence[Budget]) -> tuple[int, int]:
    """The fewest and the most MACs that any of the budgets admits."""
    return min(b.min_macs for b in budgets), max(b.max_macs for b in budgets)


def initial_design(
    space: SearchSpace,
    levels: CostLevels,
    budgets: Sequence[Budget],
    spread: int,
    seed: int,
    learned: Sequence[Mapping[str, float]] = (),
    inside: Sequence[Region] = (),
) -> Design:
    """Learned and uniform architectures, and some spread over MACs; all different.

    Args:
        space: the search space.
        levels: its architectures by MACs.
        budgets: the spread covers the MACs from their lowest to their highest bound.
        spread: number of equal ranges of MACs, from each of which one architecture is drawn.
        seed: of the draws.
        learned: α by site of the most probable architectures of a learnable supernet.
        inside: what budgets on other costs than MACs alone admit; each adds a spread inside.
    """
    design: list[tuple[str, Mapping[str, float]]] = [(LEARNED, alphas) for alphas in learned]
    design += [(UNIFORM, space.uniform(alpha).alphas) for alpha in space.alphas]
    rng = np.random.default_rng(seed)
    design += [(SPREAD, found) for found in levels.spread(rng, spread, *bounds(budgets))]
    for region in inside:
        drawn = region.levels.spread(rng, spread, region.low, region.high)
        design += [(SPREAD, found) for found in drawn]
    distinct: dict[str, tuple[str, Mapping[str, float]]] = {}
    for origin, found in design:
        distinct.setdefault(space.architecture(found).id, (origin, found))
    return list(distinct.values())


def proposals(sampler: Sampler, regions: Sequence[Region], seed: int) -> Propose | None:
    """The proposals of ``random`` and ``surrogate`` within regions of one cost; else None."""
    made = {"random": random_proposals, "surrogate": surrogate_proposals}.get(sampler)
    return made and made(regions, seed)


def random_proposals(regions: Sequence[Region], seed: int) -> Propose:
    """Every architecture within the regions with the same probability; see `proposals`."""

    def propose(number: int, *_: object) -> dict[str, float]:
        return _drawn(regions, np.random.default_rng((_RANDOM, seed, number)))

    return propose


def surrogate_proposals(regions: Sequence[Region], seed: int) -> Propose:
    """The best new architecture according to a model of the score; see `proposals`.

    Each trial draws a model from the posterior (Thompson, Biometrika 25, 1933), solves its front
    within the next region exactly, and takes the architecture there that adds most to the
    hypervolume of the reported candidates inside, all of them scored by that model. The regions
    take turns: at the same cost, one with further bounds has the worse scores.
    """
    cost = regions[0].levels.cost
    features = Features(cost.space, pairs=True)
    # Of each candidate, worked out once: features, cost, and the regions that it is inside.
    known: dict[str, tuple[Values, int, list[bool]]] = {}
    fitted: dict[int, tuple[Surrogate, Values, Values, Inside]] = {}

    def fit_to(candidates: Sequence[Candidate]) -> tuple[Surrogate, Values, Values, Inside]:
        if new := [one for one in candidates if one.id not in known]:
            for one, row in zip(new, features([one.alphas for one in new]), strict=True):
                inside = [region.admits(one.alphas) for region in regions]
                known[one.id] = row, cost.of(one.alphas), inside
        rows, costs, within = zip(*(known[one.id] for one in candidates), strict=True)
        found, losses = np.stack(rows), [one.loss for one in candidates]
        return fit(features, found, losses), found, np.array(costs, float), np.array(within)

    def propose(
        number: int, candidates: Sequence[Candidate], taken: Collection[Key]
    ) -> dict[str, float]:
        rng = np.random.default_rng((_SURROGATE, seed, number))
        if len(candidates) < _FEWEST:
            return _new(regions, rng, taken)
        if len(candidates) not in fitted:
            fitted.clear()
            fitted[len(candidates)] = fit_to(candidates)
        model, rows, costs, inside = fitted[len(candidates)]
        turns = [(number + turn) % len(regions) for turn in range(len(regions))]
        for which in turns:
            for _ in range(_MODELS):
                drawn = model.draw(rng)
                scores = rows @ drawn.weights
                found = _best_new(regions[which], drawn, costs, scores, inside[:, which], taken)
                if found is not None:
                    return found
        return _new(regions, rng, taken)

    return propose


def _best_new(
    region: Region,
    model: Drawn,
    costs: Values,
    scores: Values,
    inside: Inside,
    taken: Collection[Key],
) -> dict[str, float] | None:
    """The architecture on a model's front that adds most to the hypervolume; None if all are taken.

    ``costs``, ``scores`` by the model, and whether they are ``inside`` the region, are of the n
    reported candidates, shape ``(n,)``.
    """
    cost = region.levels.cost
    by_site = {sites: -score for sites, score in model.scores.items()}
    front = [
        alphas
        for alphas in best_front(region.levels, by_site, region.low, region.high, most=_FRONT)
        if cost.space.key(alphas) not in taken
    ]
    if not front:
        return None
    values = model(front)
    reference = (float(region.high + 1), float(max(scores.max(), values.max())) + 1e-9)
    known = _front(costs[inside], scores[inside])
    areas = [
        hypervolume([*known, (cost.of(alphas), value)], reference)
        for alphas, value in zip(front, values.tolist(), strict=True)
    ]
    return dict(front[int(np.argmax(areas))])


def _front(costs: Values, scores: Values) -> list[tuple[float, float]]:
    """The non-dominated points, ascending in cost."""
    order = np.lexsort((scores, costs))
    best = np.minimum.accumulate(scores[order])
    kept = order[np.diff(best, prepend=np.inf) < 0]
    return list(zip(costs[kept].tolist(), scores[kept].tolist(), strict=True))


def _new(
    regions: Sequence[Region], rng: np.random.Generator, taken: Collection[Key]
) -> dict[str, float]:
    """An architecture not proposed before; if none is left, or rarely otherwise, a known one."""
    inside = sum(one.size for one in regions)
    tries = _TRIES * inside / max(1.0, inside - len(taken))
    for _ in range(int(min(max(tries, _TRIES), _MOST_TRIES))):
        alphas = _drawn(regions, rng)
        if regions[0].levels.space.key(alphas) not in taken:
            break
    return alphas


def _drawn(regions: Sequence[Region], rng: np.random.Generator) -> dict[str, float]:
    """An architecture within the regions, all with the same probability."""
    one = regions[0]
    if len(regions) > 1:
        counts = np.array([region.size for region in regions])
        one = regions[int(rng.choice(len(regions), p=counts / counts.sum()))]
    return one.levels.sample(rng, one.low, one.high, by_count=True)


class SiteBySite(BaseSampler):
    """An Optuna sampler whose value for a site does not depend on the sites drawn before.

    A process that dies in the middle of a trial leaves some of its sites in the storage. Resuming
    does not draw these again, which would put a single stream of random numbers out of step.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self._make, self._whole = make, make(0)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """That of the sampler."""
        if not isinstance(self._whole, NSGAIISampler):
            return self._whole.infer_relative_search_space(study, trial)
        # Optuna would compare all trials with each other; here all have the same sites.
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return dict(sorted(complete[-1].distributions.items())) if complete else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The values of the sampler."""
        if isinstance(self._whole, NSGAIISampler):
            # The trial that selects a generation's parents gets them in another order than the
            # trials after it, or the same trial resumed. Selected here, all read them back.
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
        """The value of the sampler, from a stream of the site's own."""
        own = self._make(crc32(param_name.encode()))
        return own.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forwarded to the sampler."""
        self._whole.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Forwarded to the sampler."""
        self._whole.after_trial(study, trial, state, values)


def optuna_sampler(settings: SearchSettings, seed: int, number: int) -> BaseSampler:
    """Optuna's sampler for one trial; its random state follows from seed and number alone."""

    def make(stream: int) -> BaseSampler:
        mixed = (seed * 1_000_003 + number + stream) % 2**32
        if settings.sampler == "tpe":
            return TPESampler(seed=mixed, n_startup_trials=0, constant_liar=True)
        return NSGAIISampler(population_size=settings.population, seed=mixed)

    return SiteBySite(make)
