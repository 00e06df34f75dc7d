"""The best architecture within bounds on MACs, exactly, where its score is a sum over the sites."""

from collections.abc import Mapping, Sequence

import numpy as np

from octnas.errors import BudgetError
from octnas.levels import CostLevels, Step

_TRIES = 1000  # levels to look into where levels are wide and the best lie below a lower bound

Scores = Mapping[str, Sequence[float]]
"""What each choice of each site adds to the score, by site; −inf forbids a choice."""


def best_within(levels: CostLevels, scores: Scores, low: int, high: int) -> dict[str, float]:
    """The architecture with the largest sum of scores, by dynamic programming over cost levels.

    Where levels are wide, architectures less than the levels' rounding below ``high`` may be
    missed; none that is returned lies outside the bounds.

    Args:
        levels: the architectures by MACs.
        scores: by site.
        low, high: bounds in MACs, both included.

    Returns:
        α by site.

    Raises:
        BudgetError: no architecture lies within the bounds.
    """
    count = (high - levels.lowest) // levels.width + 1
    tables = _best_scores(levels, scores, max(0, count))
    final = tables[-1]
    for level in np.argsort(-final, kind="stable")[:_TRIES]:
        if final[level] == -np.inf:
            break
        alphas = _trace_back(levels, scores, tables, int(level))
        if levels.space.cost(alphas).macs >= low:
            return alphas
    raise BudgetError(f"no architecture of the search space costs {low:,} to {high:,} MACs")


def _best_scores(levels: CostLevels, scores: Scores, count: int) -> list[np.ndarray]:
    """The best score after each step, shape: choices of the sites kept apart, then levels."""
    tables = [np.full(count, -np.inf)]
    tables[0][:1] = 0.0
    for step in levels.steps:
        joined = np.full((*step.costs.shape, count), -np.inf)
        for index in np.ndindex(step.costs.shape):
            shift = min(int(step.costs[index]), count)
            gain = scores[step.site][index[-1]]
            joined[index][shift:] = tables[-1][index[:-1]][: count - shift] + gain
        names = (*step.before, step.site)
        gone = tuple(axis for axis, name in enumerate(names) if name not in step.after)
        tables.append(joined.max(axis=gone))
    return tables


def _trace_back(
    levels: CostLevels, scores: Scores, tables: Sequence[np.ndarray], level: int
) -> dict[str, float]:
    chosen: dict[str, int] = {}
    for step, table in zip(reversed(levels.steps), reversed(tables[:-1]), strict=True):
        index = max(
            _free(step, chosen), key=lambda index: _score(step, table, scores, index, level)
        )
        chosen.update(zip((*step.before, step.site), index, strict=True))
        level -= int(step.costs[index])
    return {site.name: site.choices[chosen[site.name]] for site in levels.space.sites}


def _free(step: Step, chosen: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The choices of a step's sites that agree with what later steps have chosen."""
    names = (*step.before, step.site)
    return [
        index
        for index in np.ndindex(step.costs.shape)
        if all(chosen.get(name, own) == own for name, own in zip(names, index, strict=True))
    ]


def _score(
    step: Step, table: np.ndarray, scores: Scores, index: tuple[int, ...], level: int
) -> float:
    before = level - int(step.costs[index])
    if before < 0:
        return -np.inf
    return float(table[index[:-1]][before]) + scores[step.site][index[-1]]
