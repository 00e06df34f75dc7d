"""Where the study of a search lives: a journal file of the run's own, or a database.

The outcomes of a search on disk, one line each, before the study is told of them.
"""

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError

from octnas.errors import SearchError, first_cause
from octnas.io.credentials import redact
from octnas.io.files import append_line, naming, parse_json, read_as

SCHEMA = 1
Entry = TypeVar("Entry")


def read_lines(path: Path, what: str, read: Callable[[str], Entry]) -> list[Entry]:
    """What the lines of a file that is only ever added to say.

    A last line that is not whole is removed, as a process that was killed or a full disk leaves
    it: the next one must not be glued to it.

    Args:
        path: of the file; none is one without lines.
        what: each line is, for the message.
        read: a line to what it says; ValueError, KeyError or TypeError where it says nothing.

    Raises:
        SearchError: a whole line that says nothing.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    found = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            found.append(read(line.decode()))
        except (ValueError, KeyError, TypeError):
            raise SearchError(
                f"{path}: line {number} is not {what}; redo the search with --fresh search"
            ) from None
    return found


@dataclass(frozen=True)
class _Line:
    schema: int
    id: str
    metrics: Mapping[str, float]


def _outcome(line: str) -> tuple[str, dict[str, float]]:
    found = read_as(_Line, parse_json(line))
    if found.schema != SCHEMA:
        raise ValueError(found.schema)
    if not isfinite(found.metrics["loss"]):
        raise ValueError(found.metrics["loss"])
    return found.id, dict(found.metrics)


class OutcomeLog:
    """Metrics of evaluated architectures by id, in a file that is only ever added to.

    Raises:
        SearchError: a line that is not whole, unless it is the last; that one was cut off when
            its process died, and is evaluated again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes = dict(read_lines(path, f"an outcome of schema {SCHEMA}", _outcome))

    def __contains__(self, identity: str) -> bool:
        return identity in self._outcomes

    def __getitem__(self, identity: str) -> Mapping[str, float]:
        return self._outcomes[identity]

    def add(self, identity: str, metrics: Mapping[str, float]) -> None:
        """Keep an outcome; it is on disk when this returns."""
        line = json.dumps({"schema": SCHEMA, "id": identity, "metrics": dict(metrics)})
        append_line(self._path, line)
        self._outcomes[identity] = dict(metrics)


# Optuna's, behind the name of the file; with more behind it while it is given back.
_LOCK = ".lock"
# What Optuna raises over lines that it has not written.
_SPOILT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Journal(JournalStorage):
    """A journal file of one process, which is on disk after `flush`.

    Optuna locks and syncs the file for every value of every trial: 9 ms each where a sync takes 4,
    and so half a second for a trial of 29 sites that is asked for and told. What is lost with the
    process is no result, since those have a file of their own, and is asked for again.

    Args:
        path: of the file; made anew, or gone on with.

    Raises:
        SearchError: a line that is no JSON, or that Optuna does not understand.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._buffer = _Buffer(path)
        try:
            super().__init__(self._buffer)
        except _SPOILT as error:
            raise SearchError(
                f"{path}: is no journal of a study ({type(error).__name__}: {error}); redo the "
                "search with --fresh search"
            ) from error

    def flush(self) -> None:
        """Write what is waiting, in one piece."""
        self._buffer.flush()


def _entry(line: str) -> dict[str, Any]:
    found: dict[str, Any] = read_as(dict[str, Any], parse_json(line))
    return found


class _Buffer(BaseJournalBackend):
    """The file, and the logs that come after it."""

    def __init__(self, path: Path) -> None:
        # Optuna would pass over a last line that it cannot read.
        self._written = len(read_lines(path, "one of a study", _entry))
        # Optuna's own lock is a link to the path as it is given here, which leads elsewhere or
        # nowhere where that is relative; it would wait without end for one of a killed process.
        lock = JournalFileOpenLock(str(path))
        for left in path.parent.glob(f"{glob.escape(path.name)}{_LOCK}*"):
            left.unlink(missing_ok=True)
        self._path, self._file = path, JournalFileBackend(str(path), lock_obj=lock)
        self._waiting: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        if log_number_from < self._written:
            yield from self._file.read_logs(log_number_from)
        yield from self._waiting[max(0, log_number_from - self._written) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        # As the file would give them back.
        self._waiting += json.loads(json.dumps(logs))

    def flush(self) -> None:
        if self._waiting:
            with naming(self._path):
                self._file.append_logs(self._waiting)
            self._written += len(self._waiting)
            self._waiting = []


def open_storage(url: str, journal: Path) -> BaseStorage:
    """The storage of the study: a database, or a journal file where no URL is given.

    Raises:
        SearchError: the database cannot be reached; without its password.
    """
    if not url:
        return Journal(journal)
    try:
        return RDBStorage(url)
    except Exception as error:  # noqa: BLE001
        # Any driver may stand behind the URL, each with errors of its own.
        reason = redact(" ".join(str(error).split()))
        raise SearchError(f"search.storage: {redact(url)} cannot be opened ({reason})") from None


@contextmanager
def opened(url: str, journal: Path) -> Iterator[BaseStorage]:
    """The same, and its connections closed in the end.

    Raises:
        SearchError: the database cannot be reached, or fails within the block; without its
            password.
    """
    storage = open_storage(url, journal)
    try:
        yield storage
    except (StorageInternalError, SQLAlchemyError) as error:
        raise SearchError(
            f"search.storage: {redact(url)} has failed ({_cause(error)}); what was evaluated is on "
            "disk, and when the database is back the same command goes on"
        ) from None
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def _cause(error: BaseException) -> str:
    """What the database's driver said, on one line; Optuna says what it takes for likely."""
    error = first_cause(error)
    # SQLAlchemy's own words repeat the statement with all its values.
    said = getattr(error, "orig", None) or error
    return redact(" ".join(f"{type(said).__name__}: {said}".split()))


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """The study of that name, new or not.

    Raises:
        SearchError: the storage holds something else than studies.
    """
    try:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise SearchError(
            f"the study {name} cannot be read ({error}); redo the search with --fresh search"
        ) from error


def quiet() -> None:
    """Let Optuna say only what has gone wrong; the progress bar says the rest."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
