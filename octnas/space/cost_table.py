"""Counting and sampling the architectures of a search space by their cost, exactly.

MACs, activation memory and, nearly, latency are sums of terms that each depend on the α of one or
two sites. So the number of architectures of every cost follows by dynamic programming over cost
levels, site by site, with a state of only those sites that a later term needs (two at most in a
ResNet).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

import numpy as np

from octnas.errors import ArchitectureError, BudgetError
from octnas.space.costs import BYTES_PER_ACTIVATION, ConvShape, conv_activations, conv_macs
from octnas.space.search_space import SearchSpace, Site

Terms = Mapping[tuple[str, ...], np.ndarray]
"""By the sites that a term depends on, sorted by name; shape: their choices."""

UNITS: Mapping[str, str] = {"macs": "MACs", "activation": "bytes", "latency": "ns"}
"""By name of the cost."""


@dataclass(frozen=True, eq=False)
class AdditiveCost:
    """A cost of the architectures of a search space, in whole numbers.

    Attributes:
        name: one of `UNITS`.
        space: the search space.
        constant: cost common to all architectures.
        terms: the rest; integers.
        vanilla: cost at α = 0 everywhere, whether that is in the space or not.
    """

    name: str
    space: SearchSpace
    constant: int
    terms: Terms
    vanilla: int

    @property
    def unit(self) -> str:
        """Unit of the cost."""
        return UNITS[self.name]

    def of(self, alphas: Mapping[str, float]) -> int:
        """The cost of an architecture; sites that are not named are at their first choice.

        Raises:
            ArchitectureError: an α that is not among its site's choices.
        """
        at = {}
        for site in self.space.sites:
            alpha, indices = alphas.get(site.name, site.choices[0]), self._indices[site.name]
            if alpha not in indices:
                raise ArchitectureError(
                    f"α of site {site.name!r}: found {alpha}, allowed: "
                    f"{', '.join(f'{choice:g}' for choice in site.choices)}"
                )
            at[site.name] = indices[alpha]
        terms = (int(term[tuple(at[name] for name in sites)]) for sites, term in self.terms.items())
        return self.constant + sum(terms)

    @cached_property
    def _indices(self) -> dict[str, dict[float, int]]:
        return {
            site.name: {choice: index for index, choice in enumerate(site.choices)}
            for site in self.space.sites
        }


def macs_of(space: SearchSpace) -> AdditiveCost:
    """Multiply-adds of one image."""
    terms = sum_terms([_macs_term(conv, space.site) for conv in space.convs])
    return AdditiveCost("macs", space, space.other_macs, terms, space.vanilla_macs)


def activation_of(space: SearchSpace) -> AdditiveCost:
    """Bytes of the convolutions' outputs of one image in float32 (paper, table 1: memory)."""
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    for conv in space.convs:
        out = np.array(space.site[conv.site_out].choices)
        found.append(((conv.site_out,), integers(conv_activations(conv, out))))
        # Zeros, so that MACs can be optimised within levels of this cost.
        sites, macs = _macs_term(conv, space.site)
        found.append((sites, np.zeros_like(macs)))
    terms = {sites: term * BYTES_PER_ACTIVATION for sites, term in sum_terms(found).items()}
    vanilla = space.cost(space.vanilla).activation_bytes
    return AdditiveCost("activation", space, 0, terms, vanilla)


def sum_terms(found: Sequence[tuple[tuple[str, ...], np.ndarray]]) -> Terms:
    """Add up the terms of the same sites, named in either order."""
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for sites, term in found:
        # With one site at both ends, only the diagonal is possible.
        if len(sites) == 2 and sites[0] == sites[1]:
            sites, term = sites[:1], np.diagonal(term)
        elif sites != tuple(sorted(sites)):
            sites, term = tuple(sorted(sites)), term.T
        terms[sites] = terms.get(sites, 0) + term
    return terms


def _macs_term(conv: ConvShape, site: Mapping[str, Site]) -> tuple[tuple[str, ...], np.ndarray]:
    """One convolution's MACs over the choices of its one or two sites."""
    out = np.array(site[conv.site_out].choices)
    if conv.site_in is None or conv.depthwise:
        return (conv.site_out,), integers(conv_macs(conv, np.zeros_like(out), out))
    into = np.array(site[conv.site_in].choices)
    macs = integers(conv_macs(conv, into[:, None], out[None, :]))
    return (conv.site_in, conv.site_out), macs


def integers(values: np.ndarray) -> np.ndarray:
    """The nearest whole numbers, int64."""
    rounded: np.ndarray = np.rint(values).astype(np.int64)
    return rounded


MAX_LEVELS = 50_000
_TRIES = 1000  # draws below the lower bound of a wide level before giving up


@dataclass(frozen=True)
class Step:
    """Adds a site; ``before`` and ``after`` are the sites in the state before and after it."""

    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    costs: np.ndarray
    """In levels; shape: the choices of ``before``, then those of ``site``."""


class CostLevels:
    """The architectures of a space by cost, in levels of equal width.

    The width is the greatest common divisor of all cost differences, so that every level is one
    exact cost. Beyond `max_levels` levels it is larger, and terms are rounded up, so that no
    architecture costs more than its level. (For ResNet-50 at 224 pixels with every site searchable,
    the 1.8 million exact levels would take minutes and 18 GB.) Counts are float64: exact up to
    2^53, then to 15 digits.

    Attributes:
        cost: by default MACs; bounds and levels are in its unit.
        width: distance of neighbouring levels.
        exact: whether every level is one exact cost.
        lowest: cost of level 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        max_levels: int = MAX_LEVELS,
        cost: AdditiveCost | None = None,
    ) -> None:
        self.space = space
        self.cost = macs_of(space) if cost is None else cost
        terms = self.cost.terms
        base = sum(int(term.min()) for term in terms.values())
        relative = {sites: term - term.min() for sites, term in terms.items()}
        span = sum(int(term.max()) for term in relative.values())
        divisor = gcd(*(int(value) for term in relative.values() for value in term.flat)) or 1
        self.width = divisor * max(1, -(-span // (divisor * max_levels)))
        self.exact = self.width == divisor
        in_levels = {sites: -(-term // self.width) for sites, term in relative.items()}
        self.lowest = base + self.cost.constant
        self._n_levels = sum(int(term.max()) for term in in_levels.values()) + 1
        self.steps = _plan(space, in_levels)
        self._tables = self._count()

    @cached_property
    def counts(self) -> np.ndarray:
        """Architectures per level, shape ``(levels,)``; level i costs ``lowest + i * width``."""
        return self._tables[-1]

    @cached_property
    def populated(self) -> np.ndarray:
        """The costs of the levels that are not empty, ascending."""
        return self.lowest + np.flatnonzero(self.counts) * self.width

    @property
    def smallest(self) -> int:
        """Cost of the smallest architecture."""
        return int(self.populated[0])

    @property
    def largest(self) -> int:
        """Cost of the largest architecture."""
        return int(self.populated[-1])

    def count(self, low: int, high: int) -> float:
        """How many architectures cost between ``low`` and ``high``, both included."""
        costs = self.lowest + np.arange(self._n_levels) * self.width
        return float(self.counts[(costs >= low) & (costs <= high)].sum())

    def sample(
        self,
        rng: np.random.Generator,
        low: int | None = None,
        high: int | None = None,
        *,
        by_count: bool = False,
        costs: np.random.Generator | None = None,
    ) -> dict[str, float]:
        """Draw a cost between two bounds, then an architecture of that cost uniformly.

        Uniform sampling of α would concentrate on a narrow band of cost instead.

        Args:
            rng: source of randomness.
            low, high: bounds, both included; by default those of the space.
            by_count: make all architectures within the bounds equally likely, instead of all costs.
            costs: source of randomness of the cost, if not ``rng``.

        Returns:
            α by site, one of each site's choices.

        Raises:
            BudgetError: no architecture is within the bounds.
        """
        for _ in range(_TRIES):
            level = self.sample_level(costs or rng, low, high, by_count=by_count)
            alphas = self.sample_at(rng, level)
            # Architectures of a wide level may cost less than the level.
            if self.exact or low is None or self.cost.of(alphas) >= low:
                return alphas
        raise BudgetError(
            f"{_TRIES} architectures drawn between {low:,} and {high or self.largest:,} "
            f"{self.cost.unit} cost less than that; levels are {self.width:,} {self.cost.unit} "
            "wide, allow a wider range"
        )

    def sample_level(
        self,
        rng: np.random.Generator,
        low: int | None = None,
        high: int | None = None,
        *,
        by_count: bool = False,
    ) -> int:
        """Draw a cost as `sample` does, and return the level of the nearest architectures."""
        low = self.smallest if low is None else low
        high = self.largest if high is None else high
        inside = self.populated[(self.populated >= low) & (self.populated <= high)]
        if len(inside) == 0:
            raise BudgetError(
                f"no architecture costs {low:,} to {high:,} {self.cost.unit}; those of the search "
                f"space cost {self.smallest:,} to {self.largest:,}"
            )
        levels = (inside - self.lowest) // self.width
        if by_count:
            counts = self.counts[levels]
            return int(rng.choice(levels, p=counts / counts.sum()))
        target = rng.uniform(inside[0], inside[-1])
        return int(levels[np.abs(inside - target).argmin()])

    def spread(
        self, rng: np.random.Generator, count: int, low: int, high: int
    ) -> list[dict[str, float]]:
        """Draw one architecture from each of ``count`` equal ranges of cost.

        Args:
            rng: source of randomness.
            count: number of ranges.
            low, high: their ends, clipped to the costs of the space.

        Returns:
            α by site, ascending in cost; fewer than ``count`` if ranges are empty.
        """
        edges = np.linspace(max(low, self.smallest), min(high, self.largest), count + 1)
        ranges = [(int(np.ceil(start)), int(end)) for start, end in pairwise(edges)]
        return [self.sample(rng, *ends) for ends in ranges if self.count(*ends) > 0]

    def sample_at(self, rng: np.random.Generator, level: int) -> dict[str, float]:
        """Draw one of the architectures of a level uniformly.

        Raises:
            BudgetError: the level is empty.
        """
        if not 0 <= level < self._n_levels or self.counts[level] == 0:
            cost = self.lowest + level * self.width
            raise BudgetError(f"no architecture costs {cost:,} {self.cost.unit}")
        chosen: dict[str, int] = {}
        for step, table in zip(reversed(self.steps), reversed(self._tables[:-1]), strict=True):
            level = self._step_back(rng, step, table, chosen, level)
        return {site.name: site.choices[chosen[site.name]] for site in self.space.sites}

    def _count(self) -> list[np.ndarray]:
        """Counts after each step; shape: choices of the sites in the state, then levels."""
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
        """Draw the choices of a step's sites into ``chosen``; returns the level before it."""
        names = (*step.before, step.site)
        free = [
            range(size) if name not in chosen else (chosen[name],)
            for name, size in zip(names, step.costs.shape, strict=True)
        ]
        indices = [tuple(index) for index in np.array(np.meshgrid(*free)).reshape(len(names), -1).T]
        rest = [level - int(step.costs[index]) for index in indices]
        pairs = zip(indices, rest, strict=True)
        weights = np.array([table[at[:-1]][left] if left >= 0 else 0.0 for at, left in pairs])
        pick = int(rng.choice(len(indices), p=weights / weights.sum()))
        chosen.update(zip(names, map(int, indices[pick]), strict=True))
        return rest[pick]


def _plan(space: SearchSpace, terms: Terms) -> list[Step]:
    """A step per site, with the terms that the site completes."""
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
                costs += along(sites, term, names, shape)
        after = tuple(name for name in names if needed_until[name] > index)
        steps.append(Step(site.name, before, after, costs))
        before = after
    return steps


def along(
    sites: tuple[str, ...], term: np.ndarray, names: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """A term over the choices of ``sites``, transposed to broadcast over those of all ``names``.

    ``shape`` has the numbers of choices of all ``names``.
    """
    ordered = sorted(sites, key=names.index)
    turned = term.transpose([sites.index(name) for name in ordered])
    return turned.reshape(
        [size if name in sites else 1 for name, size in zip(names, shape, strict=True)]
    )
