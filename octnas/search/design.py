"""The candidates that every search begins with."""

from collections.abc import Mapping, Sequence

import numpy as np

from octnas.costs import Budget
from octnas.levels import CostLevels
from octnas.space import SearchSpace

UNIFORM = "uniform"
SPREAD = "spread"


def bounds(budgets: Sequence[Budget]) -> tuple[int, int]:
    """The fewest and the most MACs that any of the budgets admits."""
    return min(b.min_macs for b in budgets), max(b.max_macs for b in budgets)


def initial_design(
    space: SearchSpace, levels: CostLevels, budgets: Sequence[Budget], spread: int, seed: int
) -> list[tuple[str, Mapping[str, float]]]:
    """Uniform-α architectures and architectures spread over MACs, each with its origin.

    Args:
        space: the search space.
        levels: its architectures by MACs.
        budgets: the spread lies below the largest and above the smallest lower bound.
        spread: how many of the second kind: one from each of so many equal ranges of MACs that
            hold any.
        seed: of their choice.
    """
    design = [(UNIFORM, space.uniform(alpha).alphas) for alpha in space.grid]
    rng = np.random.default_rng(seed)
    design += [(SPREAD, found) for found in levels.spread(rng, spread, *bounds(budgets))]
    distinct = {space.architecture(found).id: (origin, found) for origin, found in reversed(design)}
    return list(reversed(distinct.values()))
