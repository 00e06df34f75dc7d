"""Samplers that know the space: each proposes one architecture, from what was told before.

Every proposal is decided by the seed, the number of its trial and the candidates told until then.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octnas.front import Candidate, Front
from octnas.levels import CostLevels
from octnas.optimum import best_front
from octnas.search.settings import Sampler
from octnas.search.surrogate import Drawn, Features, Surrogate, Values, fit, scores_of

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
    others: Sequence[Candidate] = (),
) -> Propose | None:
    """What ``random`` and ``surrogate`` propose; None for other samplers.

    Args:
        sampler: its name.
        levels: the architectures by what is made small beside the loss.
        within: ranges in its unit, both ends included, ascending.
        seed: of the draws.
        others: with the loss of a second source, for ``surrogate``.
    """
    if sampler == "random":
        return random_proposals(levels, within, seed)
    if sampler == "surrogate":
        return surrogate_proposals(levels, within, seed, others)
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


def surrogate_proposals(
    levels: CostLevels, within: Ranges, seed: int, others: Sequence[Candidate] = ()
) -> Propose:
    """What a model of the score finds best that was not proposed before.

    Each trial draws a model from the posterior (Thompson, Biometrika 25, 1933), solves its front
    within the ranges exactly, and takes the architecture there that adds most to the hypervolume
    of the candidates, as that model sees all of them.

    Args:
        levels: the architectures by what is made small beside the loss.
        within: ranges in its unit, both ends included, ascending.
        seed: of the draws.
        others: with the loss of a second source, such as short stand-alone trainings.
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
            model = fit(features, scores_of(told, known.rows), second=scores_of(others))
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
