"""Counting and sampling the architectures of a search space by their MACs, exactly.

The cost of an architecture is a sum of terms that each depend on the α of one or two sites, so the
number of architectures of every cost follows by dynamic programming over cost levels, site after
site, keeping apart only the sites that a later term still needs (for a ResNet: two at most).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

import numpy as np

from octnas.costs import ConvShape, conv_macs
from octnas.errors import BudgetError
from octnas.space import SearchSpace, Site

MAX_LEVELS = 50_000
_TRIES = 1000  # draws that may fall below a lower bound where levels are wide


@dataclass(frozen=True)
class Step:
    """One site joins; ``before`` and ``after`` are the sites kept apart before and after that."""

    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    costs: np.ndarray
    """In levels, shape: the choices of ``before``, then those of ``site``."""


class CostLevels:
    """The architectures of a space, sorted by MACs into levels of equal width.

    The width is the greatest common divisor of all cost differences, so that every level is one
    exact cost; above `max_levels` levels it is made wider and the terms are rounded up, so that a
    level's cost is never below that of its architectures. Counts are float64: exact up to 2^53,
    then to 15 digits.

    Attributes:
        width: MACs between neighbouring levels.
        exact: whether every level is one exact cost.
        lowest: MACs of level 0.
    """

    def __init__(self, space: SearchSpace, max_levels: int = MAX_LEVELS) -> None:
        self.space = space
        terms = _terms(space)
        base = sum(int(term.min()) for term in terms.values())
        relative = {sites: term - term.min() for sites, term in terms.items()}
        span = sum(int(term.max()) for term in relative.values())
        divisor = gcd(*(int(value) for term in relative.values() for value in term.flat)) or 1
        self.width = divisor * max(1, -(-span // (divisor * max_levels)))
        self.exact = self.width == divisor
        in_levels = {sites: -(-term // self.width) for sites, term in relative.items()}
        self.lowest = base + space.other_macs
        self._n_levels = sum(int(term.max()) for term in in_levels.values()) + 1
        self.steps = _plan(space, in_levels)
        self._tables = self._count()

    @cached_property
    def counts(self) -> np.ndarray:
        """Architectures per level, shape ``(levels,)``; level i costs ``lowest + i * width``."""
        return self._tables[-1]

    @cached_property
    def populated(self) -> np.ndarray:
        """The MACs of the levels that hold an architecture, ascending."""
        return self.lowest + np.flatnonzero(self.counts) * self.width

    @property
    def cheapest(self) -> int:
        """MACs of the cheapest architecture."""
        return int(self.populated[0])

    @property
    def dearest(self) -> int:
        """MACs of the dearest architecture."""
        return int(self.populated[-1])

    def count(self, low: int, high: int) -> float:
        """How many architectures cost between ``low`` and ``high`` MACs, both included."""
        macs = self.lowest + np.arange(self._n_levels) * self.width
        return float(self.counts[(macs >= low) & (macs <= high)].sum())

    def sample(
        self, rng: np.random.Generator, low: int | None = None, high: int | None = None
    ) -> dict[str, float]:
        """Draw a cost evenly between two bounds, then an architecture of that cost evenly.

        Uniform sampling of α would crowd a narrow band of cost instead.

        Args:
            rng: where randomness comes from.
            low, high: bounds in MACs, both included; by default those of the space. Where levels
                are wide, what is cheaper than ``low`` is drawn again.

        Returns:
            α by site, one of each site's choices.

        Raises:
            BudgetError: no architecture lies within the bounds.
        """
        for _ in range(_TRIES):
            alphas = self.sample_at(rng, self.sample_level(rng, low, high))
            # A wide level may hold cheaper architectures than it says.
            if self.exact or low is None or self.space.cost(alphas).macs >= low:
                return alphas
        raise BudgetError(
            f"{_TRIES} architectures drawn between {low:,} and {high or self.dearest:,} MACs cost "
            f"less than that; levels are {self.width:,} MACs wide, allow a wider range"
        )

    def sample_level(
        self, rng: np.random.Generator, low: int | None = None, high: int | None = None
    ) -> int:
        """Draw a cost evenly between two bounds; the level of the nearest architectures.

        Raises:
            BudgetError: no architecture lies within the bounds.
        """
        low = self.cheapest if low is None else low
        high = self.dearest if high is None else high
        inside = self.populated[(self.populated >= low) & (self.populated <= high)]
        if len(inside) == 0:
            raise BudgetError(
                f"no architecture costs {low:,} to {high:,} MACs; the search space holds "
                f"{self.cheapest:,} to {self.dearest:,}"
            )
        target = rng.uniform(inside[0], inside[-1])
        return int((inside[np.abs(inside - target).argmin()] - self.lowest) // self.width)

    def spread(
        self, rng: np.random.Generator, count: int, low: int, high: int
    ) -> list[dict[str, float]]:
        """Draw one architecture from each of so many equal ranges of MACs that hold any.

        Args:
            rng: where randomness comes from.
            count: of ranges.
            low, high: their ends in MACs; what lies outside the space is left out.

        Returns:
            α by site, ascending in MACs; fewer than ``count`` where ranges are empty.
        """
        edges = np.linspace(max(low, self.cheapest), min(high, self.dearest), count + 1)
        ranges = [(int(np.ceil(start)), int(end)) for start, end in pairwise(edges)]
        return [self.sample(rng, *ends) for ends in ranges if self.count(*ends) > 0]

    def sample_at(self, rng: np.random.Generator, level: int) -> dict[str, float]:
        """Draw one of the architectures of a level, all with the same probability.

        Raises:
            BudgetError: the level holds no architecture.
        """
        if not 0 <= level < self._n_levels or self.counts[level] == 0:
            raise BudgetError(f"no architecture costs {self.lowest + level * self.width:,} MACs")
        chosen: dict[str, int] = {}
        for step, table in zip(reversed(self.steps), reversed(self._tables[:-1]), strict=True):
            level = self._step_back(rng, step, table, chosen, level)
        return {site.name: site.choices[chosen[site.name]] for site in self.space.sites}

    def _count(self) -> list[np.ndarray]:
        """Counts after each step, shape: choices of the sites kept apart, then levels."""
        tables = [np.zeros(self._n_levels)]
        tables[0][0] = 1.0
        for step in self.steps:
            joined = np.zeros((*step.costs.shape, self._n_levels))
            for index in np.ndindex(step.costs.shape):
                shift = int(step.costs[index])
                joined[index][shift:] = tables[-1][index[:-1]][: self._n_levels - shift]
            names = (*step.before, step.site)
            gone = tuple(axis for axis, name in enumerate(names) if name not in step.after)
            tables.append(joined.sum(axis=gone))
        return tables

    def _step_back(
        self,
        rng: np.random.Generator,
        step: Step,
        table: np.ndarray,
        chosen: dict[str, int],
        level: int,
    ) -> int:
        """Draw the sites that a step let go of into ``chosen``; the level before the step."""
        names = (*step.before, step.site)
        free = [
            range(size) if name not in chosen else (chosen[name],)
            for name, size in zip(names, step.costs.shape, strict=True)
        ]
        indices = [tuple(index) for index in np.array(np.meshgrid(*free)).reshape(len(names), -1).T]
        rest = [level - int(step.costs[index]) for index in indices]
        weights = np.array(
            [
                table[index[:-1]][left] if left >= 0 else 0.0
                for index, left in zip(indices, rest, strict=True)
            ]
        )
        pick = int(rng.choice(len(indices), p=weights / weights.sum()))
        chosen.update(zip(names, map(int, indices[pick]), strict=True))
        return rest[pick]


def _terms(space: SearchSpace) -> Mapping[tuple[str, ...], np.ndarray]:
    """MACs by the sites they depend on; shape: the choices of those sites. Integers."""
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for conv in space.convs:
        sites, macs = _term(conv, space.site)
        terms[sites] = terms.get(sites, 0) + macs
    return terms


def _term(conv: ConvShape, site: Mapping[str, Site]) -> tuple[tuple[str, ...], np.ndarray]:
    """One convolution's MACs over the choices of its one or two sites."""
    out = np.array(site[conv.site_out].choices)
    if conv.site_in is None or conv.depthwise:
        return (conv.site_out,), _integers(conv_macs(conv, np.zeros_like(out), out))
    if conv.site_in == conv.site_out:
        return (conv.site_out,), _integers(conv_macs(conv, out, out))
    into = np.array(site[conv.site_in].choices)
    macs = _integers(conv_macs(conv, into[:, None], out[None, :]))
    names = (conv.site_in, conv.site_out)
    return (names, macs) if names == tuple(sorted(names)) else (tuple(sorted(names)), macs.T)


def _integers(macs: np.ndarray) -> np.ndarray:
    integers: np.ndarray = np.rint(macs).astype(np.int64)
    return integers


def _plan(space: SearchSpace, terms: Mapping[tuple[str, ...], np.ndarray]) -> list[Step]:
    """The sites in order, each with the terms that it completes."""
    order = {site.name: index for index, site in enumerate(space.sites)}
    needed_until = dict(order)
    for sites in terms:
        for name in sites:
            needed_until[name] = max(needed_until[name], *(order[other] for other in sites))
    steps: list[Step] = []
    before: tuple[str, ...] = ()
    for index, site in enumerate(space.sites):
        names = (*before, site.name)
        shape = tuple(len(space.site[name].choices) for name in names)
        costs = np.zeros(shape, dtype=np.int64)
        for sites, term in terms.items():
            if site.name in sites and set(sites) <= set(names):
                costs += _spread(sites, term, names, shape)
        after = tuple(name for name in names if needed_until[name] > index)
        steps.append(Step(site.name, before, after, costs))
        before = after
    return steps


def _spread(
    sites: tuple[str, ...], term: np.ndarray, names: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """A term with its axes brought to those of ``names``."""
    ordered = sorted(sites, key=names.index)
    turned = term.transpose([sites.index(name) for name in ordered])
    return turned.reshape(
        [size if name in sites else 1 for name, size in zip(names, shape, strict=True)]
    )
