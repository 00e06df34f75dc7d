"""Backward passes of a supernet that train sampled architectures."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np
from torch import Tensor, nn

from octnas.errors import require
from octnas.nn.supernet import activate
from octnas.space.cost_table import CostLevels
from octnas.space.search_space import SearchSpace
from octnas.training.loop import Backward, Step, Teacher
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
    """The backward passes of sampled architectures, one or several in a step.

    ``sandwich`` is the sandwich rule with in-place distillation of Yu and Huang (arXiv 1903.05134,
    §3), with any uniform architecture as the teacher, since α = 0 need not be the best one. Loss
    and gradients are means over the architectures of a step.

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
    limit: Limit = rising_alphas(space, warmup) if warmup else lambda alphas, _: alphas
    fixed, samples, distil = list[Alphas](), 1, False
    if settings.sampling == "sandwich":
        fixed, samples = _ends(space, settings.teacher), settings.samples
        distil = original is None and settings.teacher != "none"
    share = 1 / (len(fixed) + samples)

    def backward(step: Step) -> Tensor:
        numbers = range(step.number * samples, (step.number + 1) * samples)
        several = [limit(alphas, step.number) for alphas in (*fixed, *map(draw, numbers))]
        targets = step.labels if original is None else original(step.images).softmax(dim=1)
        losses = []
        for index, alphas in enumerate(several):
            # Only the last pass averages the gradients over the processes.
            with step.no_sync() if index < len(several) - 1 else nullcontext():
                activate(supernet, alphas)
                logits = step.forward(step.images)
                loss = step.criterion(logits, targets) * share
                loss.backward()
            losses.append(loss.detach())
            if distil and index == 0:
                targets = logits.detach().softmax(dim=1)
        return sum(losses[1:], losses[0])

    return backward


def _ends(space: SearchSpace, teacher: float | str) -> list[Alphas]:
    """The teacher of a sandwich first, then the other ends of the range of MACs."""
    ends = [{site.name: site.choices[end] for site in space.sites} for end in (0, -1)]
    first = ends[0] if isinstance(teacher, str) else dict(space.uniform(teacher).alphas)
    return [first, *(end for end in ends if end != first)]


def rising_alphas(space: SearchSpace, steps: int) -> Limit:
    """Limit each α to the site's choices below a maximum, which rises linearly over the steps."""
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

    ``uniform`` draws every site's α uniformly; other samplings draw a cost uniformly, then an
    architecture of that cost (uniform α would crowd a narrow band of costs). With the same seed and
    number, processes of all ranks draw the same cost but different architectures.

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
        f"a range that contains architectures; none has {low:,} to {high:,} MACs, the search space "
        f"has {levels.smallest:,} to {levels.largest:,}",
    )
    low, high = max(low, levels.smallest), min(high, levels.largest)

    def by_macs(number: int) -> Alphas:
        costs = np.random.default_rng((_COST, seed, number))
        rng = np.random.default_rng((_ARCHITECTURE, seed, number, rank))
        return levels.sample(rng, low, high, costs=costs)

    return by_macs


def of_about_equal_macs(space: SearchSpace, first: Alphas, draw: Callable[[], Alphas]) -> Alphas:
    """The best match in MACs of several draws, so that no process waits long for another."""
    macs = space.cost(first).macs
    return min((draw() for _ in range(_TRIES)), key=lambda one: abs(space.cost(one).macs - macs))
