"""The outbox: records for MLflow, kept in the run directory until they are sent.

``outbox.jsonl`` is append-only, one JSON record per line. A record's file or folder is kept in
``files/ID/`` until it is sent, as it was when recorded: as hard links where the file system has
them, which take neither space nor time. `octnas.tracking.progress` knows how far it was sent.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from octnas.errors import TrackingError
from octnas.io.credentials import redact
from octnas.io.files import append_line, parse_json, read_as, remove_tree

SCHEMA = 1
FILE = "outbox.jsonl"
FILES = "files"
LOCK = "lock"
_POLL = 0.2  # seconds between two tries to get the lock


@dataclass(frozen=True)
class Entry:
    """A record.

    Attributes:
        time: when it was recorded, in milliseconds since 1970.
        kind: what to do; a key of `octnas.tracking.records.SEND`.
        key: of its run within the run directory.
        values: depend on ``kind``.
        end: offset in bytes of the end of this record in the outbox.
    """

    id: str
    time: int
    kind: str
    key: str
    values: Mapping[str, Any]
    end: int


class BusyError(TrackingError):
    """Another process is sending this outbox."""


class Outbox:
    """The records of one run directory. One process at a time may add, any process may send."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet; ``folder`` is inside the run directory."""
        self.folder = folder
        self.path = folder / FILE

    def open(self) -> None:
        """Prepare for adding: remove the unfinished record of a killed process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if (complete := content.rfind(b"\n") + 1) < len(content):
            os.truncate(self.path, complete)
        known = {entry.id for entry in self.entries()}
        for kept in (self.folder / FILES).glob("*"):
            if kept.name not in known:
                remove_tree(kept)

    def add(self, kind: str, key: str, path: Path | None = None, **values: Any) -> None:
        """Add a record, see `Entry`; it is on disk when this returns.

        The file or folder at ``path``, to send along, may change or disappear afterwards.
        """
        identity = uuid.uuid4().hex
        if path is not None:
            _keep(path, self.folder / FILES / identity / path.name)
            path, run = path.absolute(), self.folder.parent.absolute()
            # Relative: a run directory may be moved.
            values["path"] = str(path.relative_to(run) if path.is_relative_to(run) else path)
        document = {"schema": SCHEMA, "id": identity, "time": int(1000 * time.time())}
        document |= {"kind": kind, "key": key, **values}
        append_line(self.path, json.dumps(document, ensure_ascii=False))

    def entries(self, begin: int = 0) -> Iterator[Entry]:
        """The complete records from an offset on: 0, or `Entry.end` of the record before.

        Raises:
            TrackingError: a line is not a record.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(end := begin)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield self._entry(line, end)

    def _entry(self, line: bytes, end: int) -> Entry:
        try:
            values = parse_json(line)
            if (found := values.pop("schema")) != SCHEMA:
                raise ValueError(f"schema: found {found!r}, allowed: {SCHEMA}")
            own = {name: values.pop(name) for name in ("id", "time", "kind", "key")}
            return read_as(Entry, {**own, "values": values, "end": end})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackingError(
                f"{self.path}: the line that ends at byte {end:,} is not a record ({error}); "
                "correct it, or move the file away to start a new one"
            ) from None

    @property
    def id(self) -> str:
        """Id of the first record, which tags everything sent from here; empty without records."""
        return next((entry.id for entry in self.entries()), "")

    def file(self, entry: Entry) -> Path | None:
        """The file of a record as it was then, else as it is now; None if it no longer exists.

        Files outside the run directory are never sent, unless a copy was kept.
        """
        run = self.folder.parent.resolve()
        path = run / str(entry.values["path"])
        kept = self.folder / FILES / entry.id / path.name
        for found in (kept, path):
            if found.exists() and found.resolve().is_relative_to(run):
                return found
        return None

    def discard(self, entry: Entry) -> None:
        """Remove the kept file of a record that was sent."""
        remove_tree(self.folder / FILES / entry.id, ignore_errors=True)

    def discard_until(self, end: int) -> None:
        """Remove leftovers of a process that was killed after sending, up to an offset."""
        kept = {path.name for path in (self.folder / FILES).glob("*")}
        for entry in self.entries() if kept else ():
            if entry.id in kept and entry.end <= end:
                self.discard(entry)

    @contextmanager
    def sending(self, seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock for sending; wait for it for at most ``seconds``.

        Raises:
            BusyError: another process still holds it.
        """
        end = time.monotonic() + seconds
        with (self.folder / LOCK).open("w") as file:
            while not _locked(file):
                if time.monotonic() >= end:
                    raise BusyError(
                        f"{self.folder.parent}: another process is sending its records; try again "
                        "later"
                    )
                time.sleep(_POLL)
            yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Without a lock on file systems that have none.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True


def _keep(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    if path.is_dir():
        shutil.copytree(path, target, copy_function=_link)
    else:
        _link(str(path), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)  # resolved: not a link to a symbolic link
    except OSError:
        shutil.copy2(source, target)


# Limits of mlflow.utils.validation in 3.17.
_LONGEST_KEY = 250
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
LONGEST_NAME = 250  # the database's column

_INVALID = re.compile(r"[^\w./\- ]")


def flat_params(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters as text by dotted key, without passwords and cut to MLflow's limits."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_params({f"{key}.{name}": item for name, item in value.items()})
            continue
        if isinstance(value, list | tuple | dict):
            value = json.dumps(value, ensure_ascii=False, default=str)
        flat[clean_key(key)] = cut(redact(str(value)), _LONGEST_PARAM)
    return flat


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without passwords, cut to MLflow's limits."""
    return {clean_key(key): cut(redact(str(tags[key])), _LONGEST_TAG) for key in tags}


def clean_key(key: str) -> str:
    """A name that MLflow accepts: invalid characters become ``_``, a long name is cut."""
    key = _INVALID.sub("_", key)
    return key if len(key) <= _LONGEST_KEY else key[: _LONGEST_KEY - 3] + "..."


def cut(text: str, longest: int) -> str:
    """``text`` with at most ``longest`` characters; an ellipsis marks a cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
