from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from octnas.results.front import Candidate
from octnas.search.samplers import Propose
from octnas.search.settings import SearchSettings
from octnas.search.storage import opened
from octnas.search.study import Driver
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from tests.search.small import half_budget, small_driver, small_space


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return small_space()


SETTINGS = SearchSettings(sampler="nsga2", trials=40, batch_size=8, spread=6, population=8)

Make = Callable[..., Driver]


@pytest.fixture
def budget(space: SearchSpace) -> Budget:
    return half_budget(space)


@pytest.fixture
def make_driver(space: SearchSpace, tmp_path: Path) -> Iterator[Make]:
    storages = ExitStack()

    def make(
        settings: SearchSettings = SETTINGS,
        folder: str = "a",
        seed: int = 0,
        propose: Propose | None = None,
    ) -> Driver:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        storage = storages.enter_context(opened(settings.storage, place / "study.journal"))
        return small_driver(space, settings, storage, seed=seed, propose=propose, kind=Driver)

    with storages:
        yield make


def table(candidates: list[Candidate]) -> list[tuple[str, int, float, str, int]]:
    return [(c.id, c.macs, c.loss, c.origin, c.trial) for c in candidates]
