"""The candidates that every search begins with."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from octnas.space.cost_table import CostLevels
from octnas.space.costs import Bound, Budget
from octnas.space.search_space import SearchSpace

LEARNED = "learned"
UNIFORM = "uniform"
SPREAD = "spread"
# Draws at each MACs, of which one is taken by how α lies.
_POOL = 16


def bounds(budgets: Sequence[Budget]) -> tuple[int, int]:
    """The fewest and the most MACs that any of the budgets admits."""
    return min(b.min_macs for b in budgets), max(b.max_macs for b in budgets)


def ranges(bounds: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of a cost, both ends included, with those joined that meet; ascending."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(bounds):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def initial_design(
    space: SearchSpace,
    levels: CostLevels,
    budgets: Sequence[Budget],
    spread: int,
    seed: int,
    learned: Sequence[Mapping[str, float]] = (),
    inside: Sequence[tuple[CostLevels, Bound]] = (),
) -> list[tuple[str, Mapping[str, float]]]:
    """Architectures that were learned, uniform ones, and some spread over MACs, with their origin.

    Args:
        space: the search space.
        levels: its architectures by MACs.
        budgets: the spread lies below the largest and above the smallest lower bound.
        spread: how many of the last kind: one from each of so many equal ranges of MACs that
            hold any.
        seed: of their choice.
        learned: α by site of what a supernet's distributions find most probable.
        inside: architectures by another cost, with a budget's bound on it, inside of which there is
            another spread of as many.
    """
    design: list[tuple[str, Mapping[str, float]]] = [(LEARNED, alphas) for alphas in learned]
    design += [(UNIFORM, space.uniform(alpha).alphas) for alpha in space.grid]
    rng = np.random.default_rng(seed)
    design += [(SPREAD, found) for found in levels.spread(rng, spread, *bounds(budgets))]
    for others, bound in inside:
        drawn = others.spread(rng, spread, bound.lower, bound.upper)
        design += [(SPREAD, found) for found in drawn]
    distinct: dict[str, tuple[str, Mapping[str, float]]] = {}
    for origin, found in design:
        distinct.setdefault(space.architecture(found).id, (origin, found))
    return list(distinct.values())
