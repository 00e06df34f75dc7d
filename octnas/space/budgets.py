"""Budgets as a user writes them, and what they come to in a search space."""

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

_KINDS = ("uniform", "share", "macs", "flops")
_OTHERS = ("activation_mb", "activation_share", "latency_ms", "latency_share")
_UNIT = {"activation": 1e6, "latency": 1e6}
# What no budget is above: multiply-adds, bytes and nanoseconds are exact in float64 below 9e15.
_MOST_UNITS, _MOST_SHARE = 1e15, 1e3
_SAID = {"activation": "MB of activations", "latency": "ms"}


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
        upper = {key: getattr(self, key) for key in (*_KINDS, *_OTHERS)}
        given = {key: value for key, value in upper.items() if value is not None}
        allowed = f"exactly one of {', '.join(upper)}"
        require(len(given) == 1, "budget", given, allowed)
        key, value = next(iter(given.items()))
        if key == "uniform":
            require(0 <= value <= 1, key, value, "0 to 1")
        most = _MOST_SHARE if key.endswith("share") else _MOST_UNITS / _UNIT.get(self.cost, 1)
        allowed = f"above 0, up to {most:g}"
        require(0 < value <= most or key == "uniform", key, value, allowed)
        require(0 <= self.min_share <= 1, "min_share", self.min_share, "0 to 1")

    @property
    def cost(self) -> str:
        """What it bounds: ``"macs"``, ``"activation"`` or ``"latency"``."""
        given = (key for key in _OTHERS if getattr(self, key) is not None)
        return next((key.partition("_")[0] for key in given), "macs")

    @property
    def name(self) -> str:
        """What reports call it, such as ``"uniform α 0.5"``."""
        if self.uniform is not None:
            name = f"uniform α {self.uniform:g}"
        elif self.share is not None:
            name = f"{self.share:g} of vanilla"
        elif self.cost != "macs":
            value, whole = self._other()
            said = _SAID[self.cost] if whole else f"of vanilla's {self.cost}"
            name = f"{value:g} {said}"
        else:
            name = f"{int(self.macs or self.flops or 0):,} MACs"
        return f"{name}, at least {self.min_share:g}" if self.min_share else name

    @property
    def alias(self) -> str:
        """A name for what a model registry allows: letters, digits and hyphens.

        What is bounded, a hyphen, and the bound with a hyphen for its point; an ``x`` behind it
        stands for "times what vanilla has". So ``macs-0-5x`` for ``share: 0.5``, ``uniform-0-5``,
        ``macs-1000000``, ``activation-3-5mb``, ``latency-0-7x``, ``latency-12ms``; with a lower
        bound ``macs-0-5x-min-0-3``.
        """
        if self.uniform is not None:
            name = f"uniform-{self.uniform:g}"
        elif self.share is not None:
            name = f"macs-{self.share:g}x"
        elif self.cost != "macs":
            value, whole = self._other()
            unit = {"activation": "mb", "latency": "ms"}[self.cost] if whole else "x"
            name = f"{self.cost}-{value:g}{unit}"
        else:
            name = f"macs-{int(self.macs or self.flops or 0)}"
        name = f"{name}-min-{self.min_share:g}" if self.min_share else name
        return name.replace(".", "-").replace("+", "")

    def _other(self) -> tuple[float, bool]:
        """The bound on another cost, and whether it is an amount and no share."""
        for key in _OTHERS:
            if (value := getattr(self, key)) is not None:
                return value, not key.endswith("share")
        raise AssertionError

    def resolve(self, space: SearchSpace, costs: Costs | None = None) -> Budget:
        """The budget in MACs, or in the unit of its cost.

        Args:
            space: the search space.
            costs: those that budgets may bound, see `costs_of`.

        Raises:
            BudgetError: on another cost than MACs, which no architecture meets.
        """
        if self.cost != "macs":
            cost = (costs_of(space) if costs is None else costs)[self.cost]
            value, whole = self._other()
            # An amount in small units is a whole number, but for what floating point makes of it.
            upper = round(value * _UNIT[self.cost]) if whole else int(value * cost.vanilla)
            bound = Bound(self.cost, upper, round(self.min_share * cost.vanilla))
            return _within(self.name, cost, bound)
        low = round(self.min_share * space.vanilla_macs)
        if self.uniform is not None:
            macs = space.cost(space.uniform(self.uniform)).macs
            return Budget(self.name, macs, low, uniform=self.uniform)
        if self.share is not None:
            macs = int(self.share * space.vanilla_macs)
            return Budget(self.name, macs, low)
        return Budget(self.name, int(self.macs or self.flops or 0), low)


def costs_of(space: SearchSpace, table: LatencyTable | None = None) -> Costs:
    """What budgets may bound, by name: latency where there is a table.

    Raises:
        LatencyError: the table is of another network.
    """
    costs = {"macs": macs_of(space), "activation": activation_of(space)}
    return costs if table is None else {**costs, "latency": table.cost(space)}


def _within(name: str, cost: AdditiveCost, bound: Bound) -> Budget:
    """A budget on another cost, with the most and the fewest MACs below its upper bound, exactly.

    Raises:
        BudgetError: no architecture meets it.
    """
    levels = CostLevels(cost.space, cost=cost)
    none = levels.exact and levels.count(bound.lower, bound.upper) == 0
    if none or bound.upper < levels.smallest:
        raise BudgetError(
            f"budget {name}: no architecture costs {bound.lower:,} to {bound.upper:,} "
            f"{cost.unit}; the search space holds {levels.smallest:,} to {levels.largest:,}"
        )
    terms = macs_of(cost.space).terms
    most, fewest = (
        best_within(levels, {sites: sign * term for sites, term in terms.items()}, 0, bound.upper)
        for sign in (1.0, -1.0)
    )
    space = cost.space
    return Budget(name, space.cost(most).macs, space.cost(fewest).macs, bound=bound)


def check_budgets(budgets: Sequence[Budget], levels: CostLevels) -> None:
    """Refuse budgets that no architecture meets, naming both figures.

    Args:
        budgets: what is asked for.
        levels: the architectures by MACs.

    Raises:
        BudgetError: a budget below the smallest, with a lower bound above the largest, or between
            two neighbouring costs.
    """
    smallest, largest = levels.space.smallest_macs, levels.space.largest_macs
    for budget in budgets:
        if budget.max_macs < smallest:
            raise BudgetError(
                f"budget {budget.name}: {budget.max_macs:,} MACs is below the smallest "
                f"architecture of the search space, {smallest:,} MACs; raise the budget or allow "
                "larger α"
            )
        if budget.min_macs > largest:
            raise BudgetError(
                f"budget {budget.name}: at least {budget.min_macs:,} MACs is above the largest "
                f"architecture of the search space, {largest:,} MACs; lower it"
            )
        if budget.min_macs > budget.max_macs:
            raise BudgetError(
                f"budget {budget.name}: its lower bound {budget.min_macs:,} is above its upper "
                f"bound {budget.max_macs:,} MACs"
            )
        if levels.exact and levels.count(budget.min_macs, budget.max_macs) == 0:
            raise BudgetError(
                f"budget {budget.name}: no architecture costs {budget.min_macs:,} to "
                f"{budget.max_macs:,} MACs; allow a wider range"
            )
