"""The best architectures within bounds on a cost, exactly, for scores that are sums over sites.

Like costs, terms of a score may also depend on the two ends of a convolution; the dynamic
programming over cost levels is the same.
"""

from collections.abc import Mapping
from math import prod

import numpy as np

from octnas.errors import BudgetError
from octnas.space.cost_table import CostLevels, along, is_complete, shift
from octnas.space.search_space import SearchSpace

_TRIES = 1000  # wide levels to try whose best architectures miss the bounds

Tables = list[np.ndarray]

Scores = Mapping[tuple[str, ...], np.ndarray]
"""Terms of the score by sites; shape: their choices.

−inf forbids a choice. Two sites must be the ends of one convolution, see `ends`.
"""


def ends(space: SearchSpace) -> list[tuple[str, str]]:
    """The pairs of searchable sites at the two ends of a convolution, in the sites' order."""
    order = {site.name: index for index, site in enumerate(space.searchable)}
    found = {
        tuple(sorted((order[conv.site_in], order[conv.site_out])))
        for conv in space.convs
        if conv.site_in in order and conv.site_out in order and not conv.depthwise
    }
    names = list(order)
    return [(names[first], names[last]) for first, last in sorted(found) if first < last]


def best_within(levels: CostLevels, scores: Scores, low: int, high: int) -> dict[str, float]:
    """The architecture with the largest sum of scores.

    With wide levels, architectures just below ``high`` may be missed.

    Args:
        levels: the architectures by a cost.
        scores: by sites.
        low, high: bounds in the cost's unit, both included.

    Returns:
        α by site.

    Raises:
        BudgetError: no architecture is within the bounds.
        ValueError: a score of sites that are not the ends of one convolution.
    """
    gains, best = _best_scores(levels, scores, high)
    final = _by_level(best[-1]).max(axis=1, initial=-np.inf)
    # No architecture costs more than its level.
    final[: _first(levels, low)] = -np.inf
    for level in np.argsort(-final, kind="stable")[:_TRIES]:
        if final[level] == -np.inf:
            break
        (alphas,) = _trace_back(levels, gains, best, np.array([level]))
        if levels.admits(alphas, low, high):
            return alphas
    unit = levels.cost.unit
    raise BudgetError(f"no architecture of the search space costs {low:,} to {high:,} {unit}")


def best_front(
    levels: CostLevels, scores: Scores, low: int, high: int, most: int
) -> list[dict[str, float]]:
    """The Pareto-optimal architectures in cost and score, from one pass over the levels.

    Args:
        levels: the architectures by a cost.
        scores: by sites.
        low, high: bounds in the cost's unit, both included.
        most: a longer front is thinned out evenly to this length.

    Returns:
        α by site, ascending in cost and score; empty if no architecture is within the bounds.

    Raises:
        ValueError: a score of sites that are not the ends of one convolution.
    """
    gains, best = _best_scores(levels, scores, high)
    first = _first(levels, low)
    inside = _by_level(best[-1])[first:].max(axis=1, initial=-np.inf)
    before = np.maximum.accumulate(np.concatenate([[-np.inf], inside[:-1]]))
    found = first + np.flatnonzero(inside > before[: len(inside)])
    if len(found) > most:
        found = found[np.linspace(0, len(found) - 1, most).round().astype(int)]
    front = _trace_back(levels, gains, best, found)
    # Architectures of a wide level may cost less than the level.
    return [alphas for alphas in front if levels.admits(alphas, low, high)]


def _first(levels: CostLevels, low: int) -> int:
    """The first level that is not below a bound."""
    return max(0, -(-(low - levels.lowest) // levels.width))


def _by_level(table: np.ndarray) -> np.ndarray:
    """A final table with the levels of the limited costs flattened."""
    return table.reshape(len(table), -1)


def _best_scores(levels: CostLevels, scores: Scores, high: int) -> tuple[Tables, Tables]:
    """Scores added by each step, and the best scores before and after each.

    The shape of the latter: the choices of the sites in the state, then levels.
    """
    # Levels beyond the largest architecture are empty.
    high = min(high, levels.largest) if len(levels.populated) else -1
    shape = (max(0, (high - levels.lowest) // levels.width + 1), *levels.shape[1:])
    gains, best = _gains(levels, scores), [np.full(shape, -np.inf)]
    best[0].reshape(-1)[:1] = 0.0
    for step, gain in zip(levels.steps, gains, strict=True):
        joined = np.full((*gain.shape, *shape), -np.inf)
        for index in np.ndindex(gain.shape):
            shift(joined[index], best[-1][index[:-1]], step.costs[index], float(gain[index]))
        names = (*step.before, step.site)
        gone = tuple(axis for axis, name in enumerate(names) if name not in step.after)
        best.append(joined.max(axis=gone))
    return gains, best


def _gains(levels: CostLevels, scores: Scores) -> list[np.ndarray]:
    """The scores by the step that completes their sites; shape: the choices of the step's sites."""
    gains, left = [], dict(scores)
    for step in levels.steps:
        names, shape = (*step.before, step.site), step.costs.shape[:-1]
        total = np.zeros(shape)
        for sites in [sites for sites in left if is_complete(step.site, names, sites)]:
            term = np.asarray(left.pop(sites), dtype=np.float64)
            total += along(sites, term, names, shape)
        gains.append(total)
    if left:
        raise ValueError(f"scores: {sorted(left)} are not the ends of one convolution")
    return gains


def _trace_back(
    levels: CostLevels, all_gains: Tables, all_best: Tables, final: np.ndarray
) -> list[dict[str, float]]:
    """The best architecture of each of some levels, all at once."""
    shape = all_best[0].shape
    # Of every level, the best cell of the limited costs.
    cells = _by_level(all_best[-1])[final].argmax(axis=1)
    at = np.column_stack([final, *np.unravel_index(cells, shape[1:] or (1,))])[:, : len(shape)]
    chosen: dict[str, np.ndarray] = {}
    # The last table is of the levels themselves.
    steps = zip(levels.steps, all_gains, all_best[:-1], strict=True)
    for step, gains, best in reversed(list(steps)):
        costs = step.costs.reshape(-1, 1, len(shape))
        indices = np.indices(gains.shape).reshape(gains.ndim, -1, 1)
        own: dict[str, np.ndarray] = dict(zip((*step.before, step.site), indices, strict=True))
        # Combinations, levels to trace, axes of levels.
        before = at - costs
        possible = (before >= 0).all(axis=-1)
        rows = best.reshape(-1, prod(shape))
        # The choices of the sites before are rows; those of the step's site follow one another.
        row = np.arange(len(costs))[:, None] // gains.shape[-1]
        cell = np.ravel_multi_index(tuple(np.moveaxis(np.maximum(before, 0), -1, 0)), shape)
        score = rows[row, cell] + gains.reshape(-1, 1)
        for name in own.keys() & chosen.keys():
            possible &= own[name] == chosen[name]
        best_of = np.where(possible, score, -np.inf).argmax(axis=0)
        chosen |= {name: index[best_of, 0] for name, index in own.items()}
        at = at - costs[best_of, 0]
    return [
        {site.name: site.choices[chosen[site.name][one]] for site in levels.space.sites}
        for one in range(len(final))
    ]
