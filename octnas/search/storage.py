"""Where the study of a search is stored: a journal file in the run directory, or a database."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy.exc import SQLAlchemyError

from octnas.errors import SearchError, first_cause
from octnas.io.credentials import redact
from octnas.io.files import naming, parse_json, read_as

# Raised by Optuna on lines that it did not write.
_SPOILT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Journal(JournalStorage):
    """Optuna's journal storage for a single process, with a file that is written by `flush`.

    Optuna's own backend locks and syncs the file for every value of every trial: half a second for
    a trial of 29 sites. The file has the same format. Opening it changes nothing.

    Args:
        path: of the file, which need not exist yet.

    Raises:
        SearchError: a complete line that is not JSON, or that Optuna does not understand.
    """

    def __init__(self, path: Path) -> None:
        self._file = _File(path)
        try:
            super().__init__(self._file)
        except _SPOILT as error:
            raise SearchError(
                f"{path}: not the journal of a study ({type(error).__name__}: {error}); redo the "
                "search with --fresh search"
            ) from error

    def flush(self) -> None:
        """Write everything that is new, in one piece; it is on disk when this returns."""
        self._file.flush()


class _File(BaseJournalBackend):
    """A journal file, one JSON object per line.

    A truncated last line, as after a kill or with a full disk, is ignored and overwritten.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        # Where the next line begins.
        self._end = content.rfind(b"\n") + 1
        self._path, self._first, self._logs = path, 0, list[dict[str, Any]]()
        for number, line in enumerate(content[: self._end].splitlines(), start=1):
            try:
                self._logs.append(read_as(dict[str, Any], parse_json(line)))
            except (ValueError, TypeError):
                raise SearchError(
                    f"{path}: line {number} is not a line of a study; redo the search with "
                    "--fresh search"
                ) from None
        self._written = len(self._logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        yield from self._logs[log_number_from - self._first :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        # As they are read back from the file.
        self._logs += json.loads(json.dumps(logs))

    def flush(self) -> None:
        if new := self._logs[self._written :]:
            text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in new)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with naming(self._path), self._path.open("ab") as file:
                file.truncate(self._end)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
                self._end = file.tell()
        # Optuna reads each log once, as it is appended.
        self._first += len(self._logs)
        self._logs, self._written = [], 0


def open_storage(url: str, journal: Path) -> BaseStorage:
    """The storage of the study: a database, or a journal file where no URL is given.

    Raises:
        SearchError: the database is unreachable; the message hides its password.
    """
    if not url:
        return Journal(journal)
    try:
        return RDBStorage(url)
    except Exception as error:  # noqa: BLE001
        # The URL may name any driver, each with errors of its own.
        reason = redact(" ".join(str(error).split()))
        raise SearchError(f"search.storage: {redact(url)} cannot be opened ({reason})") from None


@contextmanager
def opened(url: str, journal: Path) -> Iterator[BaseStorage]:
    """Open the storage as `open_storage`, and close its connections at the end.

    Raises:
        SearchError: the database is unreachable, or fails within the block; the message hides its
            password.
    """
    storage = open_storage(url, journal)
    try:
        yield storage
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = first_cause(error)
        # SQLAlchemy's own message repeats the statement with all its values.
        said = getattr(cause, "orig", None) or cause
        reason = redact(" ".join(f"{type(said).__name__}: {said}".split()))
        raise SearchError(
            f"search.storage: {redact(url)} has failed ({reason}); the database keeps finished "
            "evaluations, and when it is back the same command resumes"
        ) from None
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """The study of that name, which is created if it does not exist.

    Raises:
        SearchError: the storage holds something other than studies.
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
            f"study {name}: cannot be read ({error}); redo the search with --fresh search"
        ) from error


def quiet() -> None:
    """Let Optuna log warnings and errors only; the progress bar shows the rest."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
