"""Steps of a supernet that train sampled architectures."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from octnas.levels import CostLevels
from octnas.nn.supernet import activate
from octnas.space import SearchSpace
from octnas.training.settings import SupernetSettings
from octnas.training.step import Backward, Step

Draw = Callable[[int], Mapping[str, float]]
"""α by site for a number of a draw, and always the same for the same number."""


def sampled(supernet: nn.Module, draw: Draw) -> Backward:
    """Steps that train one architecture each.

    Args:
        supernet: whose active architecture is changed.
        draw: called with the number of the step.
    """

    def backward(step: Step) -> Tensor:
        return _train(supernet, draw(step.number), step, step.labels)[0]

    return backward


def sandwich(
    supernet: nn.Module, space: SearchSpace, draw: Draw, *, samples: int, teacher: float | str
) -> Backward:
    """Steps that train the dearest, the cheapest and some sampled architectures together.

    The sandwich rule and in-place distillation of Yu and Huang (arXiv 1903.05134, §3), with any
    uniform architecture as the teacher, since α = 0 need not be the best one.

    Args:
        supernet: whose active architecture is changed.
        space: with the ends of the range of MACs.
        draw: called for every sampled architecture, with a number of its own.
        samples: how many a step trains besides the two ends.
        teacher: ``"dearest"``, a uniform α, or ``"none"`` for labels everywhere.

    Returns:
        Steps whose loss is the mean over their architectures, and so are their gradients.
    """
    ends = [{site.name: site.choices[end] for site in space.sites} for end in (0, -1)]
    first = ends[0] if isinstance(teacher, str) else dict(space.uniform(teacher).alphas)
    fixed = [end for end in ends if end != first]

    def backward(step: Step) -> Tensor:
        others = fixed + [dict(draw(step.number * samples + i)) for i in range(samples)]
        share = 1 / (1 + len(others))
        total, logits = _train(supernet, first, step, step.labels, share)
        targets = step.labels if teacher == "none" else logits.softmax(dim=1)
        for alphas in others:
            total += _train(supernet, alphas, step, targets, share)[0]
        return total

    return backward


def _train(
    supernet: nn.Module,
    alphas: Mapping[str, float],
    step: Step,
    targets: Tensor,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Add an architecture's gradients; its share of the loss, and its logits."""
    activate(supernet, alphas)
    logits = step.forward(step.images)
    loss = step.criterion(logits, targets) * share
    loss.backward()
    return loss.detach(), logits.detach()


def sampling_steps(
    supernet: nn.Module, space: SearchSpace, settings: SupernetSettings, *, seed: int
) -> Backward:
    """The steps that the settings ask for.

    Raises:
        BudgetError: no architecture lies in the range of MACs.
    """
    draw = architecture_draw(space, settings, seed)
    if settings.sampling == "sandwich":
        return sandwich(supernet, space, draw, samples=settings.samples, teacher=settings.teacher)
    return sampled(supernet, draw)


def architecture_draw(
    space: SearchSpace, settings: SupernetSettings, seed: int, rank: int = 0
) -> Draw:
    """Draws of α by site, each decided by the seed and its number alone.

    Args:
        space: what to draw from.
        settings: ``uniform``: every site's α evenly; else a cost, evenly, then an architecture of
            that cost, evenly (uniform α would crowd a narrow band of cost).
        seed: of the draws.
        rank: of several processes that train together: with the same seed and number they draw
            the same cost, and architectures of their own.

    Raises:
        BudgetError: no architecture lies in the range of MACs.
    """
    if settings.sampling == "uniform":

        def evenly(number: int) -> dict[str, float]:
            rng = np.random.default_rng((seed, number, rank))
            return {site.name: float(rng.choice(site.choices)) for site in space.sites}

        return evenly
    levels = CostLevels(space)
    low, high = (round(share * space.vanilla_macs) for share in settings.macs)
    low, high = max(low, levels.cheapest), min(high, levels.dearest)
    levels.sample_level(np.random.default_rng(0), low, high)  # now, not after an hour

    def by_macs(number: int) -> dict[str, float]:
        level = levels.sample_level(np.random.default_rng((seed, number)), low, high)
        return levels.sample_at(np.random.default_rng((seed, number, rank)), level)

    return by_macs
