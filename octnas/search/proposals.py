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
from octnas.search.surrogate import Drawn, Features, Scores, Surrogate, fit, log_scores

# Streams of random numbers.
_RANDOM, _SURROGATE = 1, 2
# Architectures of a drawn model's front that are compared, and models until one is new.
_FRONT, _MODELS = 48, 8
# Candidates that a model is fitted to at least.
_FEWEST = 2
# Uniform draws for something new, where the space is all but evaluated.
_TRIES = 100


@dataclass(frozen=True)
class History:
    """What a sampler may know when it proposes.

    Attributes:
        number: of the trial.
        told: the candidates that were told before its batch, without the failed ones.
        taken: ids of all architectures that were proposed before it.
    """

    number: int
    told: Sequence[Candidate]
    taken: Collection[str]


Propose = Callable[[History], Mapping[str, float]]
"""The α by site that a trial evaluates."""


def proposals(
    sampler: Sampler,
    levels: CostLevels,
    bounds: tuple[int, int],
    seed: int,
    others: Sequence[Candidate] = (),
) -> Propose | None:
    """What ``random`` and ``surrogate`` propose; None for other samplers.

    Args:
        sampler: its name.
        levels: the architectures by what is made small beside the loss.
        bounds: in its unit, both included.
        seed: of the draws.
        others: with the loss of a second source, for ``surrogate``.
    """
    if sampler == "random":
        return random_proposals(levels, bounds, seed)
    if sampler == "surrogate":
        return surrogate_proposals(levels, bounds, seed, others)
    return None


def random_proposals(levels: CostLevels, bounds: tuple[int, int], seed: int) -> Propose:
    """Every architecture within the bounds with the same probability, exactly.

    Args:
        levels: the architectures by what is made small beside the loss.
        bounds: in its unit, both included.
        seed: of the draws.
    """

    def propose(history: History) -> dict[str, float]:
        rng = np.random.default_rng((_RANDOM, seed, history.number))
        return levels.sample(rng, *bounds, by_count=True)

    return propose


def surrogate_proposals(
    levels: CostLevels, bounds: tuple[int, int], seed: int, others: Sequence[Candidate] = ()
) -> Propose:
    """What a model of the score finds best that was not proposed before.

    Each trial draws a model from the posterior (Thompson, Biometrika 25, 1933), solves its front
    within the bounds exactly, and takes the architecture there that adds most to the hypervolume
    of the candidates, as that model sees all of them.

    Args:
        levels: the architectures by what is made small beside the loss.
        bounds: in its unit, both included.
        seed: of the draws.
        others: with the loss of a second source, such as short stand-alone trainings.
    """
    fitted: dict[int, Surrogate] = {}
    features = Features(levels.space, pairs=True)

    def propose(history: History) -> dict[str, float]:
        rng, told = np.random.default_rng((_SURROGATE, seed, history.number)), history.told
        if len(told) < _FEWEST:
            return _new(levels, bounds, rng, history)
        if len(told) not in fitted:
            fitted.clear()
            fitted[len(told)] = fit(features, _scores(told), second=_scores(others))
        for _ in range(_MODELS):
            found = _best_new(levels, bounds, fitted[len(told)].draw(rng), history)
            if found is not None:
                return found
        return _new(levels, bounds, rng, history)

    return propose


def _scores(candidates: Sequence[Candidate]) -> Scores:
    return log_scores([one.alphas for one in candidates], [one.loss for one in candidates])


def _best_new(
    levels: CostLevels, bounds: tuple[int, int], model: Drawn, history: History
) -> dict[str, float] | None:
    """The architecture on a model's front that adds most; None if all were proposed before."""
    space = levels.space
    scores = {sites: -score for sites, score in model.scores.items()}
    front = [
        alphas
        for alphas in best_front(levels, scores, *bounds, most=_FRONT)
        if space.architecture(alphas).id not in history.taken
    ]
    if not front:
        return None
    known = [candidate.alphas for candidate in history.told]
    values = model([*known, *front])
    reference = (float(bounds[1] + 1), float(values.max()) + 1e-9)
    points = [
        Candidate(str(index), alphas, levels.cost.of(alphas), value)
        for index, (alphas, value) in enumerate(zip([*known, *front], values.tolist(), strict=True))
    ]
    before = Front.of(points[: len(known)]).candidates
    gains = [Front.of([*before, one]).hypervolume(reference) for one in points[len(known) :]]
    return dict(front[int(np.argmax(gains))])


def _new(
    levels: CostLevels, bounds: tuple[int, int], rng: np.random.Generator, history: History
) -> dict[str, float]:
    """Any architecture that was not proposed before, if one is found."""
    for _ in range(_TRIES):
        alphas = levels.sample(rng, *bounds, by_count=True)
        if levels.space.architecture(alphas).id not in history.taken:
            break
    return alphas
