"""What MLflow is to be told, kept in the run directory before anything is sent.

``outbox.jsonl`` is only ever added to: a line is a record, in the order in which they were made.
How far it was sent stands in another file (`octnas.tracking.progress`). The files that go along are
kept in ``files/ID/`` until they are sent, as they were when they were recorded: a hard link
wherever the file system has them, so that this takes no space and no time.

What the records of an outbox hold, by kind; a run directory may be anybody's.

Values in the form that MLflow accepts.
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

_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]*")


@dataclass(frozen=True)
class _Start:
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    parent: str | None
    again: bool


@dataclass(frozen=True)
class _Finish:
    failed: bool


@dataclass(frozen=True)
class _Metrics:
    rows: tuple[tuple[int, Mapping[str, Any]], ...]
    once: bool

    def __post_init__(self) -> None:
        for _, values in self.rows:
            for value in values.values():
                float(value)  # also of the text nan or inf


@dataclass(frozen=True)
class _Artifact:
    path: str
    folder: str

    def __post_init__(self) -> None:
        if ".." in self.folder.split("/") or self.folder.startswith("/"):
            raise ValueError(f"folder: found {self.folder!r}, allowed: one of the run")


@dataclass(frozen=True)
class _Tags:
    tags: Mapping[str, str]


@dataclass(frozen=True)
class _Model:
    path: str
    name: str
    registered: str
    digest: str
    alias: str
    tags: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"digest: found {self.digest[:80]!r}, allowed: hexadecimal digits")


_KINDS: Mapping[str, Any] = {
    "start": _Start,
    "finish": _Finish,
    "metrics": _Metrics,
    "artifact": _Artifact,
    "tags": _Tags,
    "model": _Model,
}


def check_record(identity: object, kind: str, values: Mapping[str, Any]) -> None:
    """Refuse a record that octnas has not written.

    Args:
        identity: of the record, which names a folder.
        kind: what is to be done.
        values: by name.

    Raises:
        TypeError, ValueError, KeyError: what is wrong with it.
    """
    if not (isinstance(identity, str) and _ID.fullmatch(identity)):
        raise ValueError(f"id: found {str(identity)[:40]!r}, allowed: 32 hexadecimal digits")
    read_as(_KINDS[kind], values)


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
        kind: what is to be done; a key of `octnas.tracking.sender`.
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


# mlflow.utils.validation in 3.17.
LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
LONGEST_NAME = 250  # the database's column

_REFUSED = re.compile(r"[^\w./\- ]")


def flat_params(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters by dotted key, as texts; without passwords and cut where too long."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            nested = {f"{key}.{name}": item for name, item in value.items()}
            flat.update(flat_params(nested))
        else:
            flat[clean_key(key)] = cut(redact(_text(value)), LONGEST_PARAM)
    return flat


def flat_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without passwords, cut where too long."""
    return {clean_key(key): cut(redact(str(tags[key])), LONGEST_TAG) for key in tags}


def clean_key(key: str) -> str:
    """A name that MLflow accepts: what it refuses becomes ``_``, and the end of a long one goes."""
    key = _REFUSED.sub("_", key)
    return key if len(key) <= LONGEST_KEY else key[: LONGEST_KEY - 3] + "..."


def cut(text: str, longest: int) -> str:
    """``text`` with at most ``longest`` characters; an ellipsis marks a cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _text(value: object) -> str:
    """As Python writes it, but lists and the like as JSON."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
