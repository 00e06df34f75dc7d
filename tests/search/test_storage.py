"""A database that fails in the middle of a search: one line, and the same command goes on."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Engine

from octnas.errors import SearchError
from octnas.front import Candidate
from octnas.search.local import run_local
from octnas.search.settings import SearchSettings
from octnas.search.storage import opened, quiet
from octnas.search.study import Driver
from octnas.space import SearchSpace
from tests.search.conftest import table
from tests.search.small import loss_of, small_driver

quiet()

SETTINGS = SearchSettings(sampler="nsga2", trials=14, batch_size=4, spread=2, population=4)

Search = Callable[..., list[Candidate]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing waits for the disk, and Optuna not for 8 seconds before it gives up a trial."""
    still = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("optuna.storages._rdb.storage.time", still)

    def unsafe(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", unsafe)
    yield
    event.remove(Engine, "connect", unsafe)


@pytest.fixture
def search(space: SearchSpace, tmp_path: Path, quick: None) -> Search:
    """A search in a database, with its results in a folder beside it."""

    def run(
        url: str,
        evaluated: list[str],
        at: Callable[[int], object] = lambda _: None,
        pages: int = 0,
    ) -> list[Candidate]:
        """The candidates; ``evaluated`` gets those that were, ``at`` is told how many before."""

        def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
            at(len(evaluated))
            evaluated.append(space.architecture(alphas).id)
            return loss_of(alphas)

        with opened(url, tmp_path / "study.journal") as storage:
            if pages:
                limit(storage, pages)
            folder = tmp_path / url.partition("?")[0].rpartition("/")[2].removesuffix(".db")
            folder.mkdir(exist_ok=True)
            driver = small_driver(space, SETTINGS, storage, folder, kind=Driver)
            run_local(driver, evaluate)
            return driver.candidates()

    return run


def limit(storage: object, pages: int) -> None:
    """Let SQLite's file grow no further, as on a full disk."""
    assert isinstance(storage, RDBStorage)
    storage.engine.dispose()

    @event.listens_for(storage.engine, "connect")
    def _(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")


def pages_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("PRAGMA page_count").fetchone()
    return int(count)


@pytest.mark.parametrize("number", [0, 9, 13])
def test_a_database_that_is_locked_in_mid_search(
    search: Search, tmp_path: Path, number: int
) -> None:
    whole = search("", [])  # in a journal
    # SQLite's driver waits for the lock that long.
    url, evaluated = f"sqlite:///{tmp_path}/broken.db?timeout=0.05", list[str]()
    with closing(sqlite3.connect(tmp_path / "broken.db", isolation_level=None)) as other:

        def lock(done: int) -> None:
            if done == number:
                other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(SearchError) as caught:
            search(url, evaluated, at=lock)
    assert "OperationalError: database is locked" in str(caught.value)
    assert str(caught.value).endswith("the same command goes on")
    assert "\n" not in str(caught.value)
    assert table(search(url, evaluated)) == table(whole)
    assert len(evaluated) == len(set(evaluated)) == len(whole)


def test_a_disk_that_is_full_under_the_database(search: Search, tmp_path: Path) -> None:
    """Wherever that is in the search: as a candidate is asked for, or told."""
    with opened(f"sqlite:///{tmp_path}/empty.db", tmp_path / "unused"):
        pass
    whole = search(f"sqlite:///{tmp_path}/whole.db", [])
    least, most = pages_of(tmp_path / "empty.db"), pages_of(tmp_path / "whole.db")
    assert least + 2 < most
    for pages in range(least, most):
        url, evaluated = f"sqlite:///{tmp_path}/full-{pages}.db", list[str]()
        with pytest.raises(SearchError, match="database or disk is full") as caught:
            search(url, evaluated, pages=pages)
        assert "\n" not in str(caught.value)
        assert table(search(url, evaluated)) == table(whole)
        assert len(evaluated) == len(set(evaluated)) == len(whole)


def test_a_password_is_kept_out_of_what_a_failed_database_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path}/study.db")
    monkeypatch.setattr("octnas.search.storage.open_storage", lambda *_: storage)
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("DROP TABLE studies")
    url = "postgresql://me:hunter2@host/db"
    with (
        pytest.raises(SearchError, match=r"^search\.storage: postgresql://me:\*\*\*@host/db has"),
        opened(url, tmp_path / "unused"),
    ):
        storage.get_all_studies()
