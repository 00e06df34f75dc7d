"""Steps of a supernet that train sampled architectures."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from octnas.errors import require
from octnas.nn.supernet import activate
from octnas.space.cost_table import CostLevels
from octnas.space.search_space import SearchSpace
from octnas.training.loop import Backward, Step
from octnas.training.settings import SupernetSettings

# Streams of random numbers: what draws the cost must not draw the architecture, too. They stand in
# front, since to numpy (seed, number) and (seed, number, 0) are the same.
_COST, _ARCHITECTURE = 1, 2
# Draws of a rank, of which it takes one.
_TRIES = 8

Alphas = Mapping[str, float]
Draw = Callable[[int], Alphas]
"""α by site for a number of a draw, and always the same for the same number."""

Limit = Callable[[Alphas, int], Alphas]
"""What becomes of α by site at a step, by its number."""

Teacher = Callable[[Tensor], Tensor]
"""Images to the logits of a network that does not learn."""


def _as_drawn(alphas: Alphas, _: int) -> Alphas:
    return alphas


def sampled(
    supernet: nn.Module, draw: Draw, *, original: Teacher | None = None, limit: Limit = _as_drawn
) -> Backward:
    """Steps that train one architecture each.

    Args:
        supernet: whose active architecture is changed.
        draw: called with the number of the step.
        original: whose output is learned in the place of the labels.
        limit: what becomes of α.
    """

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
    limit: Limit = _as_drawn,
) -> Backward:
    """Steps that train the largest, the smallest and some sampled architectures together.

    The sandwich rule and in-place distillation of Yu and Huang (arXiv 1903.05134, §3), with any
    uniform architecture as the teacher, since α = 0 need not be the best one.

    Args:
        supernet: whose active architecture is changed.
        space: with the ends of the range of MACs.
        draw: called for every sampled architecture, with a number of its own.
        samples: how many a step trains besides the two ends.
        teacher: ``"largest"``, a uniform α, or ``"none"`` for labels everywhere.
        original: whose output all of them learn, in the place of labels and teacher.
        limit: what becomes of α.

    Returns:
        Steps whose loss is the mean over their architectures, and so are their gradients.
    """
    ends = [{site.name: site.choices[end] for site in space.sites} for end in (0, -1)]
    first = ends[0] if isinstance(teacher, str) else dict(space.uniform(teacher).alphas)
    fixed = [end for end in ends if end != first]

    def backward(step: Step) -> Tensor:
        drawn = [draw(step.number * samples + index) for index in range(samples)]
        share = 1 / (1 + len(fixed) + samples)
        targets = _targets(step, original)
        if not fixed and not drawn:
            return _train(supernet, limit(first, step.number), step, targets)[0]
        *others, last = (limit(alphas, step.number) for alphas in (*fixed, *drawn))
        with step.alone():
            total, logits = _train(supernet, limit(first, step.number), step, targets, share)
            if original is None and teacher != "none":
                targets = logits.softmax(dim=1)
            for alphas in others:
                total += _train(supernet, alphas, step, targets, share)[0]
        return total + _train(supernet, last, step, targets, share)[0]

    return backward


def _targets(step: Step, original: Teacher | None) -> Tensor:
    return step.labels if original is None else original(step.images).softmax(dim=1)


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
    supernet: nn.Module,
    space: SearchSpace,
    settings: SupernetSettings,
    *,
    seed: int,
    steps: int = 0,
    original: Teacher | None = None,
    rank: int = 0,
) -> Backward:
    """The steps that the settings ask for.

    Args:
        supernet: whose active architecture is changed.
        space: what it holds.
        settings: which architectures a step trains.
        seed: of the draws.
        steps: of the whole training.
        original: the network that the supernet began with, if it teaches.
        rank: of this process among those that train together.

    Raises:
        SettingError: no architecture lies in the range of MACs.
    """
    draw = architecture_draw(space, settings, seed, rank)
    warmup = round(settings.alpha_warmup * steps)
    limit = rising_alphas(space, warmup) if warmup else _as_drawn
    if settings.sampling == "sandwich":
        return sandwich(
            supernet,
            space,
            draw,
            samples=settings.samples,
            teacher="largest" if settings.teacher == "original" else settings.teacher,
            original=original,
            limit=limit,
        )
    return sampled(supernet, draw, original=original, limit=limit)


def rising_alphas(space: SearchSpace, steps: int) -> Limit:
    """No α above a limit that rises in a straight line from 0 to the largest choice.

    Args:
        space: with the choices of the sites, of which the largest below the limit is taken.
        steps: after which nothing is limited any more.
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
    """Draws of α by site, each decided by the seed and its number alone.

    Args:
        space: what to draw from.
        settings: ``uniform``: every site's α evenly; else a cost, evenly, then an architecture of
            that cost, evenly (uniform α would crowd a narrow band of cost).
        seed: of the draws.
        rank: of several processes that train together: with the same seed and number they draw
            the same cost, and architectures of their own.

    Raises:
        SettingError: no architecture lies in the range of MACs.
    """
    if settings.sampling == "uniform":

        def evenly(rng: np.random.Generator) -> dict[str, float]:
            return {site.name: float(rng.choice(site.choices)) for site in space.sites}

        def draw(number: int) -> Alphas:
            first = evenly(np.random.default_rng((seed, number, 0)))
            if not rank:
                return first
            own = np.random.default_rng((seed, number, rank))
            return of_about_equal_macs(space, first, lambda: evenly(own))

        return draw
    levels = CostLevels(space)
    low, high = (round(share * space.vanilla_macs) for share in settings.macs)
    # Now, and not after an hour.
    require(
        levels.count(low, high) > 0,
        "macs",
        settings.macs,
        f"a range that holds architectures: {low:,} to {high:,} MACs hold none, the search space "
        f"{levels.smallest:,} to {levels.largest:,}",
    )
    low, high = max(low, levels.smallest), min(high, levels.largest)

    def by_macs(number: int) -> dict[str, float]:
        costs = np.random.default_rng((_COST, seed, number))
        rng = np.random.default_rng((_ARCHITECTURE, seed, number, rank))
        return levels.sample(rng, low, high, costs=costs)

    return by_macs


def of_about_equal_macs(space: SearchSpace, first: Alphas, draw: Callable[[], Alphas]) -> Alphas:
    """Of several draws the one whose MACs are nearest to those of another architecture.

    For ranks that train together, of which none shall wait for another.

    Args:
        space: for the costs.
        first: α by site of rank 0's architecture.
        draw: α by site, another one with each call.
    """
    macs = space.cost(first).macs
    several = [draw() for _ in range(_TRIES)]
    return min(several, key=lambda alphas: abs(space.cost(alphas).macs - macs))
