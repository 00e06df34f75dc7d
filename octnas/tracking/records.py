"""What the records of an outbox hold, by kind; a run directory may be anybody's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octnas.documents import read_as

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
