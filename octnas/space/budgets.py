"""Budgets as users write them, and their values in a search space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from octnas.errors import BudgetError, require
from octnas.settings import LATER
from octnas.space.cost_table import AdditiveCost, CostLevels, activation_of, macs_of
from octnas.space.costs import Bound, Budget
from octnas.space.latency import LatencyTable
from octnas.space.optimum import best_within
from octnas.space.search_space import SearchSpace

Costs = Mapping[str, AdditiveCost]
"""By name; latency where there is a table."""

# The upper bounds, each with its text in reports and in aliases.
_TEXTS = {
    "uniform": ("uniform α {:g}", "uniform-{:g}"),
    "share": ("{:g} of vanilla", "macs-{:g}x"),
    "macs": ("{:,} MACs", "macs-{}"),
    "flops": ("{:,} MACs", "macs-{}"),
    "activation_mb": ("{:g} MB of activations", "activation-{:g}mb"),
    "activation_share": ("{:g} of vanilla's activation", "activation-{:g}x"),
    "latency_ms": ("{:g} ms", "latency-{:g}ms"),
    "latency_share": ("{:g} of vanilla's latency", "latency-{:g}x"),
}
_UNIT = 1e6  # bytes of a MB, nanoseconds of a ms
# Multiply-adds, bytes and nanoseconds are exact in float64 below 9e15.
_MOST_UNITS, _MOST_SHARE = 1e15, 1e3


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """One budget: exactly one upper bound on MACs, activation memory or latency.

    Attributes:
        uniform: MACs of the network with this α at every searchable site.
        share: share of the vanilla network's MACs.
        macs: number of MACs (multiply-adds) for one image.
        flops: same as ``macs``; papers often say FLOPs for multiply-adds.
        min_share: lower bound, as a share of the vanilla network's cost; 0 for none.
        activation_mb: activation memory of one image in float32, in megabytes (10^6 bytes).
        activation_share: share of the vanilla network's activation memory.
        latency_ms: predicted latency of one batch, in milliseconds.
        latency_share: share of the vanilla network's predicted latency.
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

    def __post_init__(self) -> None:
        given = {key: value for key in _TEXTS if (value := getattr(self, key)) is not None}
        require(len(given) == 1, "budget", given, f"exactly one of {', '.join(_TEXTS)}")
        key, value = self._upper
        if key == "uniform":
            require(0 <= value <= 1, key, value, "0 to 1")
        else:
            most = _MOST_UNITS if key in ("macs", "flops") else _MOST_UNITS / _UNIT
            most = _MOST_SHARE if key.endswith("share") else most
            require(0 < value <= most, key, value, f"above 0, up to {most:g}")
        require(0 <= self.min_share <= 1, "min_share", self.min_share, "0 to 1")

    @property
    def _upper(self) -> tuple[str, float]:
        """The upper bound: its key and value."""
        found = ((key, getattr(self, key)) for key in _TEXTS)
        return next((key, value) for key, value in found if value is not None)

    @property
    def cost(self) -> str:
        """What it bounds: ``"macs"``, ``"activation"`` or ``"latency"``."""
        cost = self._upper[0].partition("_")[0]
        return cost if cost in ("activation", "latency") else "macs"

    @property
    def name(self) -> str:
        """Its name in reports, such as ``"uniform α 0.5"``."""
        name = self._text(0)
        return f"{name}, at least {self.min_share:g}" if self.min_share else name

    @property
    def alias(self) -> str:
        """A name of letters, digits and hyphens, for model registries.

        A hyphen replaces the decimal point, and an ``x`` stands for "times the vanilla network's":
        ``macs-0-5x`` for ``share: 0.5``, ``uniform-0-5``, ``macs-1000000``, ``activation-3-5mb``,
        ``latency-0-7x``, ``latency-12ms``, or with a lower bound ``macs-0-5x-min-0-3``.
        """
        name = self._text(1)
        name = f"{name}-min-{self.min_share:g}" if self.min_share else name
        return name.replace(".", "-").replace("+", "")

    def _text(self, which: int) -> str:
        key, value = self._upper
        return _TEXTS[key][which].format(int(value) if key in ("macs", "flops") else value)

    def resolve(self, space: SearchSpace, costs: Costs | None = None) -> Budget:
        """The budget in MACs, or in the unit of its cost.

        Args:
            space: the search space.
            costs: those that budgets may bound, see `costs_of`.

        Raises:
            BudgetError: on another cost than MACs, if no architecture meets it.
        """
        key, value = self._upper
        if self.cost != "macs":
            cost = (costs_of(space) if costs is None else costs)[self.cost]
            # An amount is a whole number of units, up to floating-point error.
            share = key.endswith("share")
            upper = int(value * cost.vanilla) if share else round(value * _UNIT)
            bound = Bound(self.cost, upper, round(self.min_share * cost.vanilla))
            return _within(self.name, cost, bound)
        if key == "uniform":
            macs = space.cost(space.uniform(value)).macs
        else:
            macs = int(value * space.vanilla_macs) if key == "share" else int(value)
        low = round(self.min_share * space.vanilla_macs)
        return Budget(self.name, macs, low, uniform=self.uniform)


def costs_of(space: SearchSpace, table: LatencyTable | None = None) -> Costs:
    """The costs that budgets may bound, by name; latency only with a table.

    Raises:
        LatencyError: the table is for another network.
    """
    costs = {"macs": macs_of(space), "activation": activation_of(space)}
    return costs if table is None else {**costs, "latency": table.cost(space)}


def _within(name: str, cost: AdditiveCost, bound: Bound) -> Budget:
    """A budget on another cost than MACs, with the range of MACs below its upper bound."""
    levels = CostLevels(cost.space, cost=cost)
    none = levels.exact and levels.count(bound.lower, bound.upper) == 0
    if none or bound.upper < levels.smallest:
        raise BudgetError(
            f"budget {name}: no architecture costs {bound.lower:,} to {bound.upper:,} "
            f"{cost.unit}; those of the search space cost {levels.smallest:,} to "
            f"{levels.largest:,}"
        )
    terms = macs_of(cost.space).terms
    most, fewest = (
        best_within(levels, {sites: sign * term for sites, term in terms.items()}, 0, bound.upper)
        for sign in (1.0, -1.0)
    )
    space = cost.space
    return Budget(name, space.cost(most).macs, space.cost(fewest).macs, bound=bound)


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
                f"{smallest:,} MACs; raise the budget or allow larger α"
            )
        elif low > largest:
            problem = (
                f"at least {low:,} MACs is above the largest architecture of the search space, "
                f"{largest:,} MACs; lower it"
            )
        elif low > high:
            problem = f"its lower bound {low:,} is above its upper bound {high:,} MACs"
        elif levels.exact and levels.count(low, high) == 0:
            problem = f"no architecture costs {low:,} to {high:,} MACs; allow a wider range"
        else:
            continue
        raise BudgetError(f"budget {budget.name}: {problem}")
