"""Budgets as users write them, and their values in a search space."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from octnas.errors import BudgetError, require
from octnas.settings import LATER
from octnas.space.cost_table import AdditiveCost, CostLevels, activation_of, macs_of
from octnas.space.costs import Bound, Budget
from octnas.space.latency import LatencyTable
from octnas.space.optimum import best_within
from octnas.space.peak import PeakCost, peak_of
from octnas.space.search_space import SearchSpace

Costs = Mapping[str, AdditiveCost | PeakCost]
"""By name: ``macs``, ``activation``, ``peak``, and ``latency`` where there is a table."""

# The upper bounds by cost, each with its text in reports and in aliases. A budget's first bound is
# on the first of these costs that it bounds.
_TEXTS = {
    "macs": {
        "uniform": ("uniform α {:g}", "uniform-{:g}"),
        "share": ("{:g} of vanilla", "macs-{:g}x"),
        "macs": ("{:,} MACs", "macs-{}"),
        "flops": ("{:,} MACs", "macs-{}"),
    },
    "activation": {
        "activation_mb": ("{:g} MB of activations", "activation-{:g}mb"),
        "activation_share": ("{:g} of vanilla's activation", "activation-{:g}x"),
    },
    "latency": {
        "latency_ms": ("{:g} ms", "latency-{:g}ms"),
        "latency_share": ("{:g} of vanilla's latency", "latency-{:g}x"),
    },
    "peak": {
        "peak_mb": ("{:g} MB at the peak", "peak-{:g}mb"),
        "peak_share": ("{:g} of vanilla's peak memory", "peak-{:g}x"),
    },
}
# Those that need no table.
_FORMULAS: Mapping[str, Callable[[SearchSpace], AdditiveCost | PeakCost]] = {
    "macs": macs_of,
    "activation": activation_of,
    "peak": peak_of,
}
_KEYS = [key for texts in _TEXTS.values() for key in texts]
_UNIT = 1e6  # bytes of a MB, nanoseconds of a ms
# Multiply-adds, bytes and nanoseconds are exact in float64 below 9e15.
_MOST_UNITS, _MOST_SHARE = 1e15, 1e3


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """One budget: upper bounds on MACs, activation memory, latency or peak memory.

    At least one, and at most one on each of these costs; a network must be within all of them.

    Attributes:
        uniform: MACs of the network with this α at every searchable site.
        share: share of the vanilla network's MACs.
        macs: number of MACs (multiply-adds) for one image.
        flops: same as ``macs``; papers often say FLOPs for multiply-adds.
        min_share: lower bound on the first of these costs, as a share of the vanilla network's; 0
            for none.
        activation_mb: activation memory of one image in float32, in megabytes (10^6 bytes).
        activation_share: share of the vanilla network's activation memory.
        latency_ms: predicted latency of one batch, in milliseconds.
        latency_share: share of the vanilla network's predicted latency.
        peak_mb: peak memory of one image in float32, in megabytes: the largest sum of feature maps
            that live at once as PyTorch runs the exported network.
        peak_share: share of the vanilla network's peak memory.
    """

    uniform: float | None = None
    share: float | None = None
    macs: float | None = None
    flops: float | None = None
    min_share: float = 0.0
    activation_mb: float | None = field(default=None, metadata=LATER)
    activation_share: float | None = field(default=None, metadata=LATER)
    latency_ms: float | None = field(default=None, metadata=LATER)
    latency_share: float | None = field(default=None, metadata=LATER)
    peak_mb: float | None = field(default=None, metadata=LATER)
    peak_share: float | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        given = {key: value for key in _KEYS if (value := getattr(self, key)) is not None}
        single = all(len(given.keys() & texts.keys()) <= 1 for texts in _TEXTS.values())
        allowed = " and ".join(" or ".join(texts) for texts in _TEXTS.values())
        require(bool(given) and single, "budget", given, f"one or more of: one of {allowed}")
        for key, value in given.items():
            if key == "uniform":
                require(0 <= value <= 1, key, value, "0 to 1")
                continue
            most = _MOST_UNITS if key in ("macs", "flops") else _MOST_UNITS / _UNIT
            most = _MOST_SHARE if key.endswith("share") else most
            require(0 < value <= most, key, value, f"above 0, up to {most:g}")
        require(0 <= self.min_share <= 1, "min_share", self.min_share, "0 to 1")

    @property
    def _upper(self) -> dict[str, tuple[str, float]]:
        """The upper bounds by cost: key and value."""
        return {
            cost: (key, value)
            for cost, texts in _TEXTS.items()
            for key in texts
            if (value := getattr(self, key)) is not None
        }

    @property
    def costs(self) -> tuple[str, ...]:
        """What it bounds: ``"macs"``, ``"activation"``, ``"latency"`` or ``"peak"``."""
        return tuple(self._upper)

    @property
    def cost(self) -> str:
        """What its first bound is on."""
        return self.costs[0]

    @property
    def name(self) -> str:
        """Its name in reports, such as ``"uniform α 0.5"``."""
        name = " and ".join(self._texts(0))
        return f"{name}, at least {self.min_share:g}" if self.min_share else name

    @property
    def alias(self) -> str:
        """A name of letters, digits and hyphens, for model registries.

        A hyphen replaces the decimal point, and an ``x`` stands for "times the vanilla network's":
        ``macs-0-5x`` for ``share: 0.5``, ``uniform-0-5``, ``macs-1000000``, ``activation-3-5mb``,
        ``latency-0-7x``, ``latency-12ms``, or with a lower bound ``macs-0-5x-min-0-3``.
        """
        name = "-".join(self._texts(1))
        name = f"{name}-min-{self.min_share:g}" if self.min_share else name
        return name.replace(".", "-").replace("+", "")

    def _texts(self, which: int) -> list[str]:
        return [
            _TEXTS[cost][key][which].format(int(value) if key in ("macs", "flops") else value)
            for cost, (key, value) in self._upper.items()
        ]

    def resolve(self, space: SearchSpace, costs: Costs | None = None) -> Budget:
        """The budget in MACs, or in the unit of its cost.

        Args:
            space: the search space.
            costs: those that budgets may bound, see `costs_of`.

        Raises:
            BudgetError: no architecture meets it; budgets on MACs alone are not checked.
        """
        costs = costs_of(space) if costs is None else costs
        first, *further = (
            Bound(cost, self._units(space, costs[cost], *given))
            for cost, given in self._upper.items()
        )
        low = round(self.min_share * costs[first.cost].vanilla)
        first = Bound(first.cost, first.upper, low)
        if first.cost == "macs" and not further:
            return Budget(self.name, first.upper, low, uniform=self.uniform)
        return _within(self, space, costs, first, tuple(further))

    def _units(
        self, space: SearchSpace, cost: AdditiveCost | PeakCost, key: str, value: float
    ) -> int:
        """An upper bound in the unit of its cost."""
        if key == "uniform":
            return space.cost(space.uniform(value)).macs
        if key.endswith("share"):
            return int(value * cost.vanilla)
        # An amount is a whole number of units, up to floating-point error.
        return int(value) if key in ("macs", "flops") else round(value * _UNIT)


def costs_of(
    space: SearchSpace, table: LatencyTable | None = None, names: Iterable[str] = _FORMULAS
) -> Costs:
    """The costs that budgets may bound, by name; latency only with a table.

    Args:
        space: the search space.
        table: of latencies.
        names: which of the others.

    Raises:
        LatencyError: the table is for another network.
    """
    costs = {name: _FORMULAS[name](space) for name in names}
    return costs if table is None else {**costs, "latency": table.cost(space)}


@dataclass(frozen=True, eq=False)
class Region:
    """The architectures that a budget admits, by one cost.

    Attributes:
        levels: the architectures within its bounds on other costs.
        low, high: of the cost, both included.
    """

    levels: CostLevels
    low: int
    high: int

    @property
    def size(self) -> float:
        """How many architectures there are; approximate where levels are wide."""
        return self.levels.count(self.low, self.high)

    def admits(self, alphas: Mapping[str, float]) -> bool:
        """Whether an architecture is within all bounds."""
        return self.levels.admits(alphas, self.low, self.high)

    def excess(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """By how much an architecture is outside each bound, as a share of vanilla's cost."""
        cost = self.levels.cost
        own = cost.of(alphas)
        found = {
            f"max_{cost.name}": (own - self.high) / cost.vanilla,
            f"min_{cost.name}": (self.low - own) / cost.vanilla,
        }
        for other, upper in self.levels.limits:
            found[f"max_{other.name}"] = (other.of(alphas) - upper) / other.vanilla
        return found


def regions(
    space: SearchSpace, budgets: Sequence[Budget], costs: Costs, by: str = "macs"
) -> list[Region]:
    """What budgets admit, by one additive cost; ranges that overlap or touch are joined.

    Budgets without further bounds share their levels.
    """
    found: dict[tuple[tuple[str, int], ...], list[tuple[int, int]]] = {}
    for budget in budgets:
        own = next((bound for bound in budget.bounds if bound.cost == by), None)
        limits = tuple((one.cost, one.upper) for one in budget.bounds if one.cost != by)
        found.setdefault(limits, []).append((own.lower, own.upper) if own else (0, _MOST))
    regions = []
    for limits, ends in found.items():
        cost = costs[by]
        assert isinstance(cost, AdditiveCost)
        levels = CostLevels(space, cost=cost, limits=[(costs[name], most) for name, most in limits])
        for low, high in _joined(ends):
            high = min(high, levels.largest) if len(levels.populated) and high == _MOST else high
            regions.append(Region(levels, low, high))
    return sorted(regions, key=lambda one: (one.low, one.high))


def region(space: SearchSpace, budget: Budget, costs: Costs) -> Region:
    """What one budget admits, by the cost of its first bound, or by MACs if that is the peak."""
    additive = isinstance(costs[budget.first.cost], AdditiveCost)
    (found,) = regions(space, [budget], costs, budget.first.cost if additive else "macs")
    return found


_MOST = int(_MOST_UNITS)


def _joined(ends: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint ranges in ascending order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ends):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _within(
    settings: BudgetSettings,
    space: SearchSpace,
    costs: Costs,
    first: Bound,
    further: tuple[Bound, ...],
) -> Budget:
    """A budget on other costs than MACs alone, with the range of MACs that it allows."""
    bound = None if first.cost == "macs" else first
    ends = (first.upper, first.lower) if bound is None else (_MOST, 0)
    budget = Budget(settings.name, *ends, settings.uniform, bound, further)
    found = region(space, budget, costs)
    empty = not len(found.levels.populated) or found.high < found.levels.smallest
    if empty or (found.levels.exact and found.size == 0):
        raise BudgetError(f"budget {budget.name}: {_missed(budget, costs)}")
    terms = macs_of(space).terms
    if bound is None:
        return budget
    most, fewest = (
        best_within(
            found.levels,
            {sites: sign * term for sites, term in terms.items()},
            0,
            found.high,
        )
        for sign in (1.0, -1.0)
    )
    macs = space.cost(most).macs, space.cost(fewest).macs
    return Budget(settings.name, *macs, bound=bound, further=further)


def _missed(budget: Budget, costs: Costs) -> str:
    """The bounds of a budget that no architecture meets, and the costs of the space."""
    asked, there = [], []
    for bound in budget.bounds:
        cost = costs[bound.cost]
        unit = f"{cost.unit} at the peak" if bound.cost == "peak" else cost.unit
        lower = f"{bound.lower:,} to " if bound.lower else "at most "
        asked.append(f"{lower}{bound.upper:,} {unit}")
        there.append(_range(cost, unit))
    fixed = [site.name for site in costs["macs"].space.sites if not site.searchable]
    hint = (
        f"; α is fixed at {', '.join(fixed[:3])}{', …' * (len(fixed) > 3)}, see space.fixed"
        if fixed
        else ""
    )
    return (
        f"no architecture costs {' and '.join(asked)}; those of the search space cost "
        f"{' and '.join(there)}{hint}"
    )


def _range(cost: AdditiveCost | PeakCost, unit: str) -> str:
    """The smallest, largest and median cost of a space."""
    if isinstance(cost, PeakCost):
        # One level is enough to count.
        below = [
            CostLevels(cost.space, 1, limits=[(cost, one)]).counts.sum() for one in cost.values
        ]
        ends = (0, below[-1] / 2, below[-1])
        low, median, high = (
            cost.values[int(np.searchsorted(below, end, side="left" if end else "right"))]
            for end in ends
        )
    else:
        levels = CostLevels(cost.space, cost=cost)
        low, median, high = levels.smallest, levels.median, levels.largest
    return f"{low:,} to {high:,} {unit} (median {median:,})"


def check_budgets(budgets: Sequence[Budget], levels: CostLevels) -> None:
    """Refuse budgets that no architecture meets; ``levels`` are by MACs.

    Raises:
        BudgetError: naming the budget, its bounds and those of the space.
    """
    smallest, largest = levels.space.smallest_macs, levels.space.largest_macs
    for budget in budgets:
        low, high = budget.min_macs, budget.max_macs
        if high < smallest:
            problem = (
                f"{high:,} MACs is below the smallest architecture of the search space, "
                f"{smallest:,} MACs (median {levels.median:,}, largest {largest:,}); raise the "
                "budget or allow larger α"
            )
        elif low > largest:
            problem = (
                f"at least {low:,} MACs is above the largest architecture of the search space, "
                f"{largest:,} MACs (median {levels.median:,}, smallest {smallest:,}); lower it"
            )
        elif low > high:
            problem = f"its lower bound {low:,} is above its upper bound {high:,} MACs"
        elif levels.exact and levels.count(low, high) == 0:
            problem = f"no architecture costs {low:,} to {high:,} MACs; allow a wider range"
        else:
            continue
        raise BudgetError(f"budget {budget.name}: {problem}")
