"""Budgets as a user writes them, and what they come to in a search space."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from octnas.costs import Budget
from octnas.errors import BudgetError, require
from octnas.levels import CostLevels
from octnas.space import SearchSpace


@dataclass(frozen=True)
class BudgetSettings:
    """One budget on MACs; exactly one upper bound.

    Attributes:
        uniform: the MACs of the uniform-α network at this α.
        share: this share of the vanilla network's MACs.
        macs: so many MACs for one image.
        flops: the same as ``macs``; papers say FLOPs where they mean multiply-adds.
        min_share: an optional lower bound, as a share of the vanilla network's MACs.
    """

    uniform: float | None = None
    share: float | None = None
    macs: float | None = None
    flops: float | None = None
    min_share: float = 0.0

    def __post_init__(self) -> None:
        upper = {key: getattr(self, key) for key in ("uniform", "share", "macs", "flops")}
        given = {key: value for key, value in upper.items() if value is not None}
        require(len(given) == 1, "budget", given, "exactly one of uniform, share, macs, flops")
        key, value = next(iter(given.items()))
        if key == "uniform":
            require(0 <= value <= 1, key, value, "0 to 1")
        require(0 < value < inf or key == "uniform", key, value, "a number above 0")
        require(0 <= self.min_share <= 1, "min_share", self.min_share, "0 to 1")

    @property
    def name(self) -> str:
        """What reports call it, such as ``"uniform α 0.5"``."""
        if self.uniform is not None:
            name = f"uniform α {self.uniform:g}"
        elif self.share is not None:
            name = f"{self.share:g} of vanilla"
        else:
            name = f"{int(self.macs or self.flops or 0):,} MACs"
        return f"{name}, at least {self.min_share:g}" if self.min_share else name

    def resolve(self, space: SearchSpace) -> Budget:
        """The budget in MACs."""
        low = round(self.min_share * space.vanilla_macs)
        if self.uniform is not None:
            macs = space.cost(space.uniform(self.uniform)).macs
            return Budget(self.name, macs, low, uniform=self.uniform)
        if self.share is not None:
            macs = int(self.share * space.vanilla_macs)
            return Budget(self.name, macs, low)
        return Budget(self.name, int(self.macs or self.flops or 0), low)


def check_budgets(budgets: Sequence[Budget], levels: CostLevels) -> None:
    """Refuse budgets that no architecture meets, naming both figures.

    Args:
        budgets: what is asked for.
        levels: the architectures by MACs.

    Raises:
        BudgetError: a budget below the cheapest, with a lower bound above the dearest, or between
            two neighbouring costs.
    """
    cheapest, dearest = levels.space.cheapest_macs, levels.space.dearest_macs
    for budget in budgets:
        if budget.max_macs < cheapest:
            raise BudgetError(
                f"budget {budget.name}: {budget.max_macs:,} MACs is below the cheapest "
                f"architecture of the search space, {cheapest:,} MACs; raise the budget or allow "
                "larger α"
            )
        if budget.min_macs > dearest:
            raise BudgetError(
                f"budget {budget.name}: at least {budget.min_macs:,} MACs is above the dearest "
                f"architecture of the search space, {dearest:,} MACs; lower it"
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
