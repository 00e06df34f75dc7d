"""What MLflow is to be told, kept in the run directory before anything is sent.

``outbox.jsonl`` is only ever added to: a line is a record, in the order in which they were made.
How far it was sent stands in another file (`octnas.tracking.progress`). The files that go along are
kept in ``files/ID/`` until they are sent, as they were when they were recorded: a hard link
wherever the file system has them, so that this takes no space and no time.
"""

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from octnas.documents import parse_json, read_as
from octnas.errors import TrackingError
from octnas.files import append_line, remove_tree
from octnas.tracking.records import check_record

SCHEMA = 1
FILE = "outbox.jsonl"
FILES = "files"
LOCK = "lock"
_LOOK = 0.2  # seconds


@dataclass(frozen=True)
class Entry:
    """A record.

    Attributes:
        id: unique.
        time: milliseconds since 1970, when it was recorded.
        kind: what is to be done; a key of `octnas.tracking.sending`.
        key: of the run that it belongs to.
        values: by kind.
        end: bytes of the outbox up to the end of this record.
    """

    id: str
    time: int
    kind: str
    key: str
    values: Mapping[str, Any]
    end: int


class BusyError(TrackingError):
    """Another process sends from this outbox."""


class Outbox:
    """The records of one run directory. One process at a time may add; any may send."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet.

        Args:
            folder: in the run directory, for the outbox and its files.
        """
        self.folder = folder
        self.path = folder / FILE

    def open(self) -> None:
        """Make ready for adding: a line that a killed process has not finished is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if (whole := content.rfind(b"\n") + 1) < len(content):
            os.truncate(self.path, whole)
        known = {entry.id for entry in self.entries()}
        # Kept, but killed before it was recorded.
        for kept in (self.folder / FILES).glob("*"):
            if kept.name not in known:
                remove_tree(kept)

    def add(self, kind: str, key: str, **values: Any) -> None:
        """Record something; it is on disk when this returns."""
        self._add(uuid.uuid4().hex, kind, key, values)

    def add_file(self, kind: str, key: str, path: Path, **values: Any) -> None:
        """Record something with a file or a folder, which may change or go afterwards."""
        identity = uuid.uuid4().hex
        _keep(path, self.folder / FILES / identity / path.name)
        place, home = path.absolute(), self.folder.parent.absolute()
        # A run directory may be moved.
        shown = place.relative_to(home) if place.is_relative_to(home) else place
        self._add(identity, kind, key, {"path": str(shown), **values})

    def _add(self, identity: str, kind: str, key: str, values: Mapping[str, Any]) -> None:
        document = {"schema": SCHEMA, "id": identity, "time": int(1000 * time.time())}
        line = json.dumps({**document, "kind": kind, "key": key, **values}, ensure_ascii=False)
        append_line(self.path, line)

    def entries(self, begin: int = 0) -> Iterator[Entry]:
        """The whole records behind a position.

        Args:
            begin: `Entry.end` of the record before; 0 for all.

        Raises:
            TrackingError: a line that is no record.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(begin)
            end = begin
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
            known = {name: values.pop(name) for name in ("id", "time", "kind", "key")}
            read_as(dict[str, str], {name: known[name] for name in ("id", "kind", "key")})
            read_as(int, known["time"])
            check_record(known["id"], known["kind"], values)
            return Entry(**known, values=values, end=end)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackingError(
                f"{self.path}: the line that ends at byte {end:,} is no record ({error}); correct "
                "it, or move the file away to begin a new one"
            ) from None

    def file(self, entry: Entry) -> Path | None:
        """The file of a record as it was then; else as it is now; None if it is gone.

        Only what lies in the run directory, links followed: one from elsewhere must not be able to
        send what else there is on this machine.
        """
        home = self.folder.parent.resolve()
        path = home / entry.values["path"]
        kept = self.folder / FILES / entry.id / path.name
        return next((found for found in (kept, path) if _within(found, home)), None)

    def discard(self, entry: Entry) -> None:
        """Let go of the file of a record that was sent."""
        remove_tree(self.folder / FILES / entry.id, ignore_errors=True)

    def discard_all(self, end: int) -> None:
        """Let go of the files of all records up to a position: whoever sent them may have died.

        Args:
            end: of the last record that was sent.
        """
        kept = {place.name for place in (self.folder / FILES).glob("*")}
        for entry in self.entries() if kept else ():
            if entry.id in kept and entry.end <= end:
                self.discard(entry)

    @contextmanager
    def sending(self, seconds: float = 0.0) -> Iterator[None]:
        """Be the only process that sends.

        Args:
            seconds: to wait for another one.

        Raises:
            BusyError: another one sends, still.
        """
        end = time.monotonic() + seconds
        with (self.folder / LOCK).open("w") as file:
            while not _locked(file):
                if time.monotonic() >= end:
                    raise BusyError(
                        f"{self.folder.parent}: another process sends its records; try again later"
                    )
                time.sleep(_LOOK)
            yield


def _within(path: Path, home: Path) -> bool:
    """Whether a file, or all of a folder, is there and in a folder."""
    return path.exists() and all(
        one.resolve().is_relative_to(home) for one in (path, *path.rglob("*"))
    )


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Else a file system without locks.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True


def _keep(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True)
    if path.is_dir():
        shutil.copytree(path, place, copy_function=_link)
    else:
        _link(str(path), str(place))


def _link(source: str, target: str) -> None:
    try:
        # A link to a file would be linked itself.
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
