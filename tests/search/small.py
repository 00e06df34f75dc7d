"""A small search: seven sites of three choices, under half of what vanilla costs."""

from collections.abc import Mapping
from typing import TypeVar

from optuna.storages import BaseStorage

from octnas.nn.search_space import search_space
from octnas.search.samplers import Propose, initial_design, proposals
from octnas.search.settings import SearchSettings
from octnas.search.study import Driver
from octnas.space.budgets import Region
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace


def small_space() -> SearchSpace:
    """7 sites of 3 choices."""
    return search_space(
        "thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), backbone_args={"num_classes": 10}, fixed={}
    )


def half_budget(space: SearchSpace) -> Budget:
    """The MACs of uniform α .5."""
    return Budget("half", space.cost(space.uniform(0.5)).macs)


def loss_of(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
    """A smooth score in which some sites hurt more than others."""
    weights = range(1, len(alphas) + 1)
    loss = 1 + sum(w * alphas[name] ** 2 for w, name in zip(weights, sorted(alphas), strict=True))
    return {"loss": loss, "top1": 1 / loss}


D = TypeVar("D", bound=Driver)


def small_driver(
    space: SearchSpace,
    settings: SearchSettings,
    storage: BaseStorage,
    *,
    seed: int = 0,
    propose: Propose | None = None,
    study: str = "study",
    kind: type[D],
) -> D:
    """A driver of a kind, with its design and the proposals of its sampler."""
    levels, budget = CostLevels(space), half_budget(space)
    regions = [Region(levels, budget.min_macs, budget.max_macs)]
    return kind(
        space,
        settings,
        storage=storage,
        study_name=study,
        regions=regions,
        design=initial_design(space, levels, [budget], settings.spread, seed),
        seed=seed,
        propose=propose or proposals(settings.sampler, regions, seed),
    )
