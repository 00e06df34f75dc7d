"""A database that fails in the middle of a search: one line, and the same command resumes.

A driver that died while it wrote what it had asked for, or told: every write may be the last.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy import event
from sqlalchemy.engine import Engine

from octnas.errors import SearchError
from octnas.results.front import Candidate
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.storage import Journal, open_study, opened, quiet
from octnas.search.study import Driver, run_local
from octnas.space.search_space import SearchSpace
from tests.search.conftest import Make, table
from tests.search.small import loss_of, small_driver
from tests.search.test_surrogate import noisy

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
    """A search in a database, or in a journal where no URL is given."""

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
            driver = small_driver(space, SETTINGS, storage, kind=Driver)
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


@pytest.mark.parametrize(
    "number", [9, *(pytest.param(one, marks=pytest.mark.slow) for one in (0, 13))]
)
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
    assert str(caught.value).endswith("the same command resumes")
    assert "\n" not in str(caught.value)
    assert table(search(url, evaluated)) == table(whole)
    # The evaluation that could not be stored is repeated, and no other.
    assert evaluated[number + 1] == evaluated[number]
    assert len(evaluated) - 1 == len(set(evaluated)) == len(whole)


@pytest.mark.slow
def test_a_disk_that_is_full_under_the_database(search: Search, tmp_path: Path) -> None:
    """Wherever that is in the search: as a candidate is asked for, or told."""
    with opened(f"sqlite:///{tmp_path}/empty.db", tmp_path / "unused"):
        pass
    whole = search(f"sqlite:///{tmp_path}/whole.db", [])
    least, most = pages_of(tmp_path / "empty.db"), pages_of(tmp_path / "whole.db")
    assert least + 2 < most
    for pages in range(least, most, 3):
        url, evaluated = f"sqlite:///{tmp_path}/full-{pages}.db", list[str]()
        with pytest.raises(SearchError, match="database or disk is full") as caught:
            search(url, evaluated, pages=pages)
        assert "\n" not in str(caught.value)
        assert table(search(url, evaluated)) == table(whole)
        assert len(set(evaluated)) == len(whole) >= len(evaluated) - 1


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


def torn(journal: Path, operation: JournalOperation, every: int) -> Iterator[bytes]:
    """Beginnings of a journal, each ending after one in ``every`` operations of a kind."""
    lines = journal.read_bytes().splitlines(keepends=True)
    found = [n for n, line in enumerate(lines, 1) if json.loads(line)["op_code"] == operation]
    yield from (b"".join(lines[:n]) for n in found[every // 2 :: every])


@pytest.mark.parametrize(
    ("sampler", "operation", "every"),
    [
        ("nsga2", JournalOperation.SET_TRIAL_PARAM, 31),
        ("nsga2", JournalOperation.SET_STUDY_SYSTEM_ATTR, 1),
        ("nsga2", JournalOperation.SET_TRIAL_STATE_VALUES, 9),
        ("tpe", JournalOperation.SET_TRIAL_PARAM, 83),
        ("surrogate", JournalOperation.SET_TRIAL_PARAM, 41),
        ("surrogate", JournalOperation.SET_TRIAL_STATE_VALUES, 9),
        ("random", JournalOperation.SET_TRIAL_PARAM, 41),
        ("random", JournalOperation.SET_TRIAL_STATE_VALUES, 9),
    ],
)
def test_a_partly_written_journal_resumes_to_the_same_end(
    make_driver: Make, tmp_path: Path, sampler: Sampler, operation: JournalOperation, every: int
) -> None:
    settings = SearchSettings(sampler=sampler, trials=40, batch_size=8, spread=6, population=8)
    whole = make_driver(settings, folder="whole")
    run_local(whole, noisy)
    for number, begun in enumerate(torn(tmp_path / "whole" / "study.journal", operation, every)):
        folder = tmp_path / f"torn-{number}"
        folder.mkdir()
        (folder / "study.journal").write_bytes(begun)
        again = make_driver(settings, folder=folder.name)
        run_local(again, noisy)
        assert table(again.candidates()) == table(whole.candidates())


def test_opening_a_journal_changes_nothing(tmp_path: Path) -> None:
    """Also where a killed process has left part of a line, which is not glued to the next."""
    path = tmp_path / "run" / "study.journal"
    first = Journal(path)
    open_study(first, "one")
    assert not path.parent.exists()
    first.flush()
    with path.open("a") as file:
        file.write('{"op_code": 0, "wor')
    before = path.read_bytes()
    again = Journal(path)
    open_study(again, "two")
    assert path.read_bytes() == before
    again.flush()
    assert [study.study_name for study in Journal(path).get_all_studies()] == ["one", "two"]
    # Optuna reads the same file.
    theirs = JournalStorage(JournalFileBackend(str(path)))
    assert [study.study_name for study in theirs.get_all_studies()] == ["one", "two"]
