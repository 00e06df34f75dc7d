"""Counting and sampling the architectures of a search space by their cost, exactly.

MACs, activation memory and, nearly, latency are sums of terms that each depend on the α of one or
two sites. So the number of architectures of every cost follows by dynamic programming over cost
levels, site by site, with a state of only those sites that a later term needs (two at most in a
ResNet).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from math import gcd, prod

import numpy as np

from octnas.errors import ArchitectureError, BudgetError
from octnas.space.costs import BYTES_PER_ACTIVATION, ConvShape, conv_activations, conv_macs
from octnas.space.peak import PeakCost
from octnas.space.search_space import SearchSpace, Site

Terms = Mapping[tuple[str, ...], np.ndarray]
"""By the sites that a term depends on, sorted by name; shape: their choices."""

UNITS: Mapping[str, str] = {"macs": "MACs", "activation": "bytes", "latency": "ns"}
"""By name of an additive cost."""


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
# Of these, for a cost that is limited besides, or for each of several; and levels above a limit
# that are kept, since costs are rounded.
_LIMIT_LEVELS, _SEVERAL_LEVELS, _SLACK = 100, 16, 2
_TRIES = 1000  # draws from wide levels that miss the bounds before giving up

Limit = tuple[AdditiveCost | PeakCost, int]
"""A cost and its upper bound, included."""


@dataclass(frozen=True)
class Step:
    """Adds a site; ``before`` and ``after`` are the sites in the state before and after it."""

    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    costs: np.ndarray
    """In levels; shape: the choices of ``before``, those of ``site``, then the levels' axes."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """The levels of one additive cost: their number and width, and the terms in levels."""

    count: int
    width: int
    exact: bool
    terms: Terms

    @staticmethod
    def of(cost: AdditiveCost, most: int, *, up: bool, limit: int | None = None) -> "_Axis":
        """At most ``most`` levels, up to a limit; terms are rounded up or to the nearest level."""
        lowest = _lowest(cost)
        relative = {sites: term - term.min() for sites, term in cost.terms.items()}
        span = sum(int(term.max()) for term in relative.values())
        span = span if limit is None else max(0, min(span, limit - lowest))
        divisor = gcd(*(int(value) for term in relative.values() for value in term.flat)) or 1
        width = divisor * max(1, -(-span // (divisor * most)))
        exact = width == divisor
        terms = {
            sites: -(-term // width) if up or exact else integers(term / width)
            for sites, term in relative.items()
        }
        if limit is None:
            count = sum(int(term.max()) for term in terms.values()) + 1
        else:
            count = span // width + 1 + (0 if exact else _SLACK)
        return _Axis(count, width, exact, terms)


def _lowest(cost: AdditiveCost) -> int:
    """The sum of the smallest terms."""
    return cost.constant + sum(int(term.min()) for term in cost.terms.values())


class CostLevels:
    """The architectures of a space by cost, in levels of equal width.

    The width is the greatest common divisor of all cost differences, so that every level is one
    exact cost. Beyond `max_levels` levels it is larger, and terms are rounded up, so that no
    architecture costs more than its level. (For ResNet-50 at 224 pixels with every site searchable,
    the 1.8 million exact levels would take minutes and 18 GB.) Counts are float64: exact up to
    2^53, then to 15 digits.

    With limits only architectures within them are there. One on peak memory forbids combinations
    of choices, exactly. One on an additive cost adds levels of that cost; where these are wide,
    terms of both costs are rounded to the nearest level, counts are approximate, and every
    architecture is checked before it is returned. What is returned is within all bounds; optima
    less than a few levels below them may be missed.

    Attributes:
        cost: by default MACs; bounds and levels are in its unit.
        limits: upper bounds on other costs.
        width: distance of neighbouring levels.
        exact: whether every level is one exact cost.
        lowest: cost of level 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        max_levels: int = MAX_LEVELS,
        cost: AdditiveCost | None = None,
        limits: Sequence[Limit] = (),
    ) -> None:
        self.space, self.limits = space, tuple(limits)
        self.cost = macs_of(space) if cost is None else cost
        additive = [(one, upper) for one, upper in limits if isinstance(one, AdditiveCost)]
        per_limit = _LIMIT_LEVELS if len(additive) == 1 else _SEVERAL_LEVELS
        others = [_Axis.of(one, per_limit, up=False, limit=upper) for one, upper in additive]
        most = max_levels // prod(axis.count for axis in others)
        first = _Axis.of(self.cost, max(1, most), up=not others)
        axes = [first, *others]
        self.width, self.lowest = first.width, _lowest(self.cost)
        self.exact = all(axis.exact for axis in axes)
        self.shape = tuple(axis.count for axis in axes)
        forbidden = [
            (sites, term > upper)
            for one, upper in limits
            if isinstance(one, PeakCost)
            for sites, term in one.terms
        ]
        self.steps = _plan(space, axes, forbidden)
        # Below the smallest architecture there is no level.
        self._tables = self._count(empty=any(upper < _lowest(one) for one, upper in additive))

    @cached_property
    def counts(self) -> np.ndarray:
        """Architectures per level, shape ``(levels,)``; level i costs ``lowest + i * width``."""
        counts: np.ndarray = self._cells.sum(axis=1)
        return counts

    @property
    def _cells(self) -> np.ndarray:
        """Architectures per level and by levels of the limited costs, flattened."""
        return self._tables[-1].reshape(self.shape[0], -1)

    @cached_property
    def populated(self) -> np.ndarray:
        """The costs of the levels that are not empty, ascending; none if limits leave nothing."""
        return self.lowest + np.flatnonzero(self.counts) * self.width

    @property
    def smallest(self) -> int:
        """Cost of the smallest architecture."""
        return int(self.populated[0])

    @property
    def largest(self) -> int:
        """Cost of the largest architecture."""
        return int(self.populated[-1])

    @property
    def median(self) -> int:
        """Median cost of the architectures."""
        total = np.cumsum(self.counts)
        return self.lowest + int(np.searchsorted(total, total[-1] / 2)) * self.width

    def count(self, low: int, high: int) -> float:
        """How many architectures cost between ``low`` and ``high``, both included."""
        costs = self.lowest + np.arange(self.shape[0]) * self.width
        return float(self.counts[(costs >= low) & (costs <= high)].sum())

    def admits(self, alphas: Mapping[str, float], low: int, high: int) -> bool:
        """Whether an architecture costs between ``low`` and ``high`` and is within the limits."""
        within = all(one.of(alphas) <= upper for one, upper in self.limits)
        return within and low <= self.cost.of(alphas) <= high

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
            if self.exact or (low is None and not self.limits):
                return alphas
            if self.admits(alphas, low or 0, self.largest if high is None else high):
                return alphas
        raise BudgetError(
            f"{_TRIES} architectures drawn between {low or self.smallest:,} and "
            f"{high or self.largest:,} {self.cost.unit} miss these bounds; levels are "
            f"{self.width:,} {self.cost.unit} wide, allow a wider range"
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
        if len(self.populated) == 0:
            raise BudgetError("no architecture of the search space is within the limits")
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
        found = []
        for ends in ranges:
            if self.count(*ends) > 0:
                # Of wide levels with limits, all that was drawn may miss them.
                with suppress(BudgetError):
                    found.append(self.sample(rng, *ends))
        return found

    def sample_at(self, rng: np.random.Generator, level: int) -> dict[str, float]:
        """Draw one of the architectures of a level uniformly.

        Raises:
            BudgetError: the level is empty.
        """
        if not 0 <= level < self.shape[0] or self.counts[level] == 0:
            cost = self.lowest + level * self.width
            raise BudgetError(f"no architecture costs {cost:,} {self.cost.unit}")
        at: tuple[int, ...] = (level,)
        if len(self.shape) > 1:
            cells = self._cells[level]
            cell = int(rng.choice(len(cells), p=cells / cells.sum()))
            at = (level, *map(int, np.unravel_index(cell, self.shape[1:])))
        chosen: dict[str, int] = {}
        for step, table in zip(reversed(self.steps), reversed(self._tables[:-1]), strict=True):
            at = self._step_back(rng, step, table, chosen, at)
        return {site.name: site.choices[chosen[site.name]] for site in self.space.sites}

    def _count(self, *, empty: bool) -> list[np.ndarray]:
        """Counts after each step; shape: choices of the sites in the state, then levels."""
        tables = [np.zeros(self.shape)]
        tables[0].flat[0] = 0.0 if empty else 1.0
        for step in self.steps:
            joined = np.zeros((*step.costs.shape[:-1], *self.shape))
            for index in np.ndindex(step.costs.shape[:-1]):
                shift(joined[index], tables[-1][index[:-1]], step.costs[index])
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
        at: tuple[int, ...],
    ) -> tuple[int, ...]:
        """Draw the choices of a step's sites into ``chosen``; returns the levels before it."""
        names = (*step.before, step.site)
        free = [
            range(size) if name not in chosen else (chosen[name],)
            for name, size in zip(names, step.costs.shape[:-1], strict=True)
        ]
        indices = [tuple(index) for index in np.array(np.meshgrid(*free)).reshape(len(names), -1).T]
        rest = [tuple((at - step.costs[index]).tolist()) for index in indices]
        pairs = zip(indices, rest, strict=True)
        weights = np.array(
            [table[index[:-1]][left] if min(left) >= 0 else 0.0 for index, left in pairs]
        )
        pick = int(rng.choice(len(indices), p=weights / weights.sum()))
        chosen.update(zip(names, map(int, indices[pick]), strict=True))
        return rest[pick]


def shift(target: np.ndarray, source: np.ndarray, by: np.ndarray, plus: float = 0.0) -> None:
    """Write ``source + plus``, moved up by some levels of each axis, into ``target``."""
    if all(step < size for step, size in zip(by, target.shape, strict=True)):
        to = tuple(slice(step, None) for step in by)
        kept = zip(by, target.shape, strict=True)
        target[to] = source[tuple(slice(0, size - step) for step, size in kept)] + plus


def _plan(
    space: SearchSpace,
    axes: Sequence[_Axis],
    forbidden: Sequence[tuple[tuple[str, ...], np.ndarray]],
) -> list[Step]:
    """A step per site, with the terms that the site completes."""
    named = _order(space) if forbidden else [site.name for site in space.sites]
    order = {name: index for index, name in enumerate(named)}
    needed_until = dict(order)
    for sites in [*(sites for axis in axes for sites in axis.terms), *(at for at, _ in forbidden)]:
        for name in sites:
            needed_until[name] = max(needed_until[name], *(order[other] for other in sites))
    beyond = axes[0].count
    steps: list[Step] = []
    before: tuple[str, ...] = ()
    for index, site in enumerate(named):
        names = (*before, site)
        shape = tuple(len(space.site[name].choices) for name in names)
        complete = partial(is_complete, site, names)
        costs = np.zeros((*shape, len(axes)), dtype=np.int64)
        for number, axis in enumerate(axes):
            for sites in filter(complete, axis.terms):
                costs[..., number] += along(sites, axis.terms[sites], names, shape)
        for sites, over in forbidden:
            if complete(sites):
                costs[..., 0] += beyond * along(sites, over, names, shape)
        after = tuple(name for name in names if needed_until[name] > index)
        steps.append(Step(site, before, after, costs))
        before = after
    return steps


def _order(space: SearchSpace) -> list[str]:
    """The sites, with a stage's residual stream before what is inside its blocks.

    So that a state has four sites at most when a moment of the peak depends on as many.
    """
    named = [site.name for site in space.sites]
    first = {name: index for index, name in enumerate(named)}
    for name in reversed(named):
        stage = name.partition(".")[0]
        if stage in first:
            first[stage] = min(first[stage], first[name])
    return sorted(named, key=lambda name: (first[name], "." in name))


def is_complete(site: str, names: Sequence[str], sites: Sequence[str]) -> bool:
    """Whether a step that adds ``site`` to the state ``names`` is the first with all ``sites``."""
    return site in sites and set(sites) <= set(names)


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
