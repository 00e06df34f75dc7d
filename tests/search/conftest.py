from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from octnas.costs import Budget
from octnas.front import Candidate
from octnas.levels import CostLevels
from octnas.nn.shapes import search_space
from octnas.search.design import bounds, initial_design
from octnas.search.proposals import Propose, proposals
from octnas.search.settings import SearchSettings
from octnas.search.storage import opened
from octnas.search.study import Driver
from octnas.space import SearchSpace


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """7 sites of 3 choices."""
    return search_space(
        "thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), backbone_args={"num_classes": 10}, fixed={}
    )


def loss_of(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
    """A smooth score in which some sites hurt more than others."""
    weights = range(1, len(alphas) + 1)
    loss = 1 + sum(w * alphas[name] ** 2 for w, name in zip(weights, sorted(alphas), strict=True))
    return {"loss": loss, "top1": 1 / loss}


SETTINGS = SearchSettings(sampler="nsga2", trials=40, batch_size=8, spread=6, population=8)

Make = Callable[..., Driver]


@pytest.fixture
def budget(space: SearchSpace) -> Budget:
    return Budget("half", space.cost(space.uniform(0.5)).macs)


@pytest.fixture
def make_driver(space: SearchSpace, budget: Budget, tmp_path: Path) -> Iterator[Make]:
    storages = ExitStack()

    def make(
        settings: SearchSettings = SETTINGS,
        folder: str = "a",
        seed: int = 0,
        propose: Propose | None = None,
    ) -> Driver:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        levels = CostLevels(space)
        return Driver(
            space,
            settings,
            storage=storages.enter_context(opened(settings.storage, place / "study.journal")),
            study_name="study",
            within=[bounds([budget])],
            design=initial_design(space, levels, [budget], settings.spread, seed),
            seed=seed,
            propose=propose or proposals(settings.sampler, levels, [bounds([budget])], seed),
            log=place / "outcomes.jsonl",
        )

    with storages:
        yield make


def table(candidates: list[Candidate]) -> list[tuple[str, int, float, str, int]]:
    return [(c.id, c.macs, c.loss, c.origin, c.trial) for c in candidates]
