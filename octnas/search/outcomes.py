"""The outcomes of a search on disk, one line each, before the study is told of them."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from octnas.documents import parse_json, read_as
from octnas.errors import SearchError
from octnas.files import append_line

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
