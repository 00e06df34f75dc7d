"""What one could do by hand at the same MACs: one α everywhere, or α growing with depth."""

from itertools import product

import numpy as np

from octnas.additive import AdditiveCost
from octnas.architecture import Architecture
from octnas.costs import Bound, Budget
from octnas.results import GROWING, PAPER, SEARCHED, UNIFORM, VANILLA, Network
from octnas.space import SearchSpace

# Steps in which a baseline's one or two parameters are tried.
_STEPS = 101


def baseline(
    space: SearchSpace,
    role: str,
    budget: Budget,
    at_least: int,
    cost: AdditiveCost | None = None,
) -> Network:
    """A baseline of a budget.

    Args:
        space: the search space; fixed sites stay as they are fixed.
        role: ``"uniform"``, ``"paper"``, ``"growing"`` or ``"vanilla"``.
        budget: whose MACs the baseline should have.
        at_least: cost of the searched network, below which a baseline would not be a fair one.
        cost: what the budget bounds, if not MACs; then α is one of each site's choices.

    Returns:
        For ``"vanilla"`` the network at α = 0; otherwise the one of its kind whose cost is
        closest to the budget's and not below ``at_least``.
    """
    if role == VANILLA:
        architecture = space.architecture({site.name: 0.0 for site in space.sites})
        return Network(VANILLA, "", architecture, space.cost(architecture))
    if role == UNIFORM and budget.uniform is not None:
        architecture = space.uniform(budget.uniform)
    elif cost is not None and budget.bound is not None:
        architecture = _closest_of(cost, _DESIGNS[role](space), budget.bound, at_least)
    else:
        architecture = _closest(space, _DESIGNS[role](space), budget, at_least)
    return Network(role, budget.name, architecture, space.cost(architecture))


def searched(space: SearchSpace, budget: Budget, architecture: Architecture) -> Network:
    """The network that the search chose for a budget."""
    return Network(SEARCHED, budget.name, architecture, space.cost(architecture))


def _closest(
    space: SearchSpace, designs: np.ndarray, budget: Budget, at_least: int
) -> Architecture:
    """The design, shape ``(n, len(searchable))``, closest to the budget and not below a bound."""
    names = [site.name for site in space.searchable]
    realised = np.array(
        [list(space.realise(dict(zip(names, row, strict=True))).values()) for row in designs]
    )
    macs = space.macs(realised)
    allowed = macs >= at_least
    distance = np.where(allowed, np.abs(macs - budget.max_macs), np.iinfo(np.int64).max)
    best = realised[int(distance.argmin())]
    return space.architecture(dict(zip(space.site, map(float, best), strict=True)))


def _closest_of(
    cost: AdditiveCost, designs: np.ndarray, bound: Bound, at_least: int
) -> Architecture:
    """As `_closest`, with each α brought to the nearest choice of its site.

    Where all designs cost less than ``at_least``, the dearest.
    """
    space = cost.space
    found = [
        {
            site.name: _nearest(site.choices, float(want))
            for site, want in zip(space.searchable, row, strict=True)
        }
        for row in designs
    ]
    costs = np.array([cost.of(alphas) for alphas in found])
    distance = np.where(costs >= at_least, np.abs(costs - bound.upper), np.iinfo(np.int64).max)
    best = distance.argmin() if (costs >= at_least).any() else costs.argmax()
    return space.architecture(found[int(best)])


def _uniform_designs(space: SearchSpace) -> np.ndarray:
    return np.repeat(np.linspace(0, 1, _STEPS)[:, None], len(space.searchable), axis=1)


def _paper_designs(space: SearchSpace) -> np.ndarray:
    """One α but in stem and last stage, which stay at 0 (arXiv 1904.05049, §4.1)."""
    stages = [site.name.partition(".")[0] for site in space.searchable]
    last = space.sites[-1].name.partition(".")[0]
    free = np.array([not stage.startswith("stem") and stage != last for stage in stages])
    designs: np.ndarray = _uniform_designs(space) * free
    return designs


def _growing_designs(space: SearchSpace) -> np.ndarray:
    """α grows in a straight line from 0 at some depth up to one of the choices at another.

    Both depths and the choice are tried; each α goes to the nearest choice of its site.
    """
    depth = np.array([site.depth for site in space.searchable])
    designs = []
    for start, top in product(np.linspace(0, 1, _STEPS // 4, endpoint=False), space.grid[1:]):
        for end in np.linspace(start, 2, _STEPS // 2)[1:]:
            ramp = top * np.clip((depth - start) / (end - start), 0, 1)
            wanted = zip(space.searchable, ramp, strict=True)
            designs.append([_nearest(site.choices, float(want)) for site, want in wanted])
    return np.unique(np.array(designs), axis=0)


def _nearest(choices: tuple[float, ...], want: float) -> float:
    return min(choices, key=lambda choice: abs(choice - want))


_DESIGNS = {UNIFORM: _uniform_designs, PAPER: _paper_designs, GROWING: _growing_designs}
