"""The outcomes of a search on disk, one line each, before the study is told of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from octnas.errors import SearchError

SCHEMA = 1


def drop_cut_line(path: Path) -> None:
    """Remove what is left of a last line that was not written whole; the next one follows it.

    A process that is killed, or a full disk, may leave one.
    """
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


class OutcomeLog:
    """Metrics of evaluated architectures by id, in a file that is only ever added to.

    Raises:
        SearchError: a line that is not whole, unless it is the last; that one was cut off when
            its process died, and is evaluated again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes = self._read()

    def __contains__(self, identity: str) -> bool:
        return identity in self._outcomes

    def __getitem__(self, identity: str) -> Mapping[str, float]:
        return self._outcomes[identity]

    def add(self, identity: str, metrics: Mapping[str, float]) -> None:
        """Keep an outcome; it is on disk when this returns."""
        line = json.dumps({"schema": SCHEMA, "id": identity, "metrics": dict(metrics)})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._outcomes[identity] = dict(metrics)

    def _read(self) -> dict[str, dict[str, float]]:
        if not self._path.exists():
            return {}
        drop_cut_line(self._path)
        lines = self._path.read_text(encoding="utf-8").splitlines()
        outcomes = {}
        for number, line in enumerate(lines, start=1):
            try:
                document = json.loads(line)
                if document["schema"] == SCHEMA:
                    outcomes[document["id"]] = document["metrics"]
                    continue
            except (ValueError, KeyError, TypeError):
                pass
            raise SearchError(
                f"{self._path}: line {number} is not an outcome of schema {SCHEMA}; redo the "
                "search with --fresh search"
            )
        return outcomes
