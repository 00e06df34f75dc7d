"""Backward passes of a supernet that train sampled architectures."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from octnas.errors import require
from octnas.nn.supernet import activate
from octnas.space.cost_table import CostLevels
from octnas.space.search_space import SearchSpace
from octnas.training.loop import Backward, Step
from octnas.training.settings import SupernetSettings

# Streams of random numbers for costs and architectures. They come first in the seed, since numpy
# treats (seed, number) and (seed, number, 0) alike.
_COST, _ARCHITECTURE = 1, 2
# Architectures among which a process chooses the one of the wanted MACs.
_TRIES = 8

Alphas = Mapping[str, float]
Draw = Callable[[int], Alphas]
"""α by site for the number of a draw, decided by the number alone."""

Limit = Callable[[Alphas, int], Alphas]
"""α by site, limited according to the number of the step."""

Teacher = Callable[[Tensor], Tensor]
"""Images to the logits of a frozen network."""


def sampling_steps(
    supernet: nn.Module,
    space: SearchSpace,
    settings: SupernetSettings,
    *,
    seed: int,
    steps: int = 0,
    original: Teacher | None = None,
    rank: int = 0,
) -> Backward:
    """The backward passes that the settings ask for.

    Args:
        supernet: its active architecture is changed.
        space: to sample from.
        settings: which architectures a step trains.
        seed: of the draws.
        steps: of the whole training, for the warm-up of α.
        original: a teacher in the place of all labels.
        rank: of this process.

    Raises:
        SettingError: no architecture has MACs in the sampled range.
    """
    draw = architecture_draw(space, settings, seed, rank)
    warmup = round(settings.alpha_warmup * steps)
    limit = rising_alphas(space, warmup) if warmup else _unlimited
    if settings.sampling == "sandwich":
        teacher = "largest" if settings.teacher == "original" else settings.teacher
        return sandwich(
            supernet,
            space,
            draw,
            samples=settings.samples,
            teacher=teacher,
            original=original,
            limit=limit,
        )

    def backward(step: Step) -> Tensor:
        alphas = limit(draw(step.number), step.number)
        return _train(supernet, alphas, step, _targets(step, original))[0]

    return backward


def sandwich(
    supernet: nn.Module,
    space: SearchSpace,
    draw: Draw,
    *,
    samples: int,
    teacher: float | str,
    original: Teacher | None = None,
    limit: Limit | None = None,
) -> Backward:
    """Backward passes over the largest, the smallest and some sampled architectures together.

    The sandwich rule and in-place distillation of Yu and Huang (arXiv 1903.05134, §3), with any
    uniform architecture as the teacher, since α = 0 need not be the best one.

    Args:
        supernet: its active architecture is changed.
        space: for the largest and the smallest architecture.
        draw: the sampled architectures.
        samples: how many of them a step trains.
        teacher: ``"largest"``, a uniform α, or ``"none"`` for labels everywhere.
        original: a teacher in the place of all labels and of ``teacher``.
        limit: applied to all architectures.

    Returns:
        Passes whose loss and gradients are means over the architectures.
    """
    limit = limit or _unlimited
    ends = [{site.name: site.choices[end] for site in space.sites} for end in (0, -1)]
    first = ends[0] if isinstance(teacher, str) else dict(space.uniform(teacher).alphas)
    fixed = [first, *(end for end in ends if end != first)]
    share = 1 / (len(fixed) + samples)

    def backward(step: Step) -> Tensor:
        drawn = [draw(step.number * samples + index) for index in range(samples)]
        alphas = [limit(one, step.number) for one in (*fixed, *drawn)]
        targets = _targets(step, original)
        if len(alphas) == 1:
            return _train(supernet, alphas[0], step, targets)[0]
        with step.no_sync():
            total, logits = _train(supernet, alphas[0], step, targets, share)
            if original is None and teacher != "none":
                targets = logits.softmax(dim=1)
            for one in alphas[1:-1]:
                total += _train(supernet, one, step, targets, share)[0]
        return total + _train(supernet, alphas[-1], step, targets, share)[0]

    return backward


def _targets(step: Step, original: Teacher | None) -> Tensor:
    return step.labels if original is None else original(step.images).softmax(dim=1)


def _train(
    supernet: nn.Module, alphas: Alphas, step: Step, targets: Tensor, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Add an architecture's gradients; its share of the loss, and its logits."""
    activate(supernet, alphas)
    logits = step.forward(step.images)
    loss = step.criterion(logits, targets) * share
    loss.backward()
    return loss.detach(), logits.detach()


def _unlimited(alphas: Alphas, _: int) -> Alphas:
    return alphas


def rising_alphas(space: SearchSpace, steps: int) -> Limit:
    """Limit α to a maximum that rises linearly from 0 to the largest choice.

    Args:
        space: the largest choice of each site below the maximum is taken.
        steps: length of the rise.
    """
    largest = max(site.choices[-1] for site in space.sites)

    def limit(alphas: Alphas, number: int) -> Alphas:
        most = largest * min(1.0, number / steps)
        return {
            name: max(
                (choice for choice in space.site[name].choices if choice <= min(alpha, most)),
                default=space.site[name].choices[0],
            )
            for name, alpha in alphas.items()
        }

    return limit


def architecture_draw(
    space: SearchSpace, settings: SupernetSettings, seed: int, rank: int = 0
) -> Draw:
    """Draws of α by site.

    Args:
        space: to sample from.
        settings: ``uniform`` draws every site's α uniformly; other samplings draw a cost uniformly,
            then an architecture of that cost (uniform α would crowd a narrow band of costs).
        seed: of the draws.
        rank: of this process. With the same seed and number, all processes draw the same cost but
            different architectures.

    Raises:
        SettingError: no architecture has MACs in the sampled range.
    """
    if settings.sampling == "uniform":

        def uniform(rng: np.random.Generator) -> Alphas:
            return {site.name: float(rng.choice(site.choices)) for site in space.sites}

        def draw(number: int) -> Alphas:
            first = uniform(np.random.default_rng((seed, number, 0)))
            own = np.random.default_rng((seed, number, rank))
            return of_about_equal_macs(space, first, lambda: uniform(own)) if rank else first

        return draw
    levels = CostLevels(space)
    low, high = (round(share * space.vanilla_macs) for share in settings.macs)
    require(
        levels.count(low, high) > 0,
        "macs",
        settings.macs,
        f"a range with architectures: none has {low:,} to {high:,} MACs, the search space has "
        f"{levels.smallest:,} to {levels.largest:,}",
    )
    low, high = max(low, levels.smallest), min(high, levels.largest)

    def by_macs(number: int) -> Alphas:
        costs = np.random.default_rng((_COST, seed, number))
        rng = np.random.default_rng((_ARCHITECTURE, seed, number, rank))
        return levels.sample(rng, low, high, costs=costs)

    return by_macs


def of_about_equal_macs(space: SearchSpace, first: Alphas, draw: Callable[[], Alphas]) -> Alphas:
    """The best match in MACs of several draws, so that no process waits long for another.

    Args:
        space: for the costs.
        first: α by site, to match.
        draw: called several times for α by site.
    """
    macs = space.cost(first).macs
    return min((draw() for _ in range(_TRIES)), key=lambda one: abs(space.cost(one).macs - macs))
