"""How far an outbox was sent to a store, and the MLflow runs of the run directory."""

from pathlib import Path
from typing import Any

from octnas.errors import TrackingError
from octnas.io.files import read_json, remove_drafts, write_json
from octnas.tracking.outbox import Entry, Outbox

FILE = "tracking.json"
SCHEMA = 2
_READABLE = (1, SCHEMA)  # 1 was before the outbox


class Progress:
    """The contents of ``tracking.json``, for one store and experiment.

    If the file is about another store or experiment it starts over: everything is sent again.

    Attributes:
        sent: offset in bytes of the end of the last record that was sent.
        runs: MLflow's run ids by key.
        refused: records that the store has refused: ``id``, ``kind``, ``key`` and ``why``.
    """

    def __init__(self, path: Path, *, uri: str, experiment_id: str) -> None:
        """As `read`, with the URI without its password; requires the lock `Outbox.sending`."""
        self._path = path
        self._about = {"tracking_uri": uri, "experiment_id": experiment_id}
        remove_drafts(path)
        self.read()

    def read(self) -> None:
        """Read the file, which another process may have changed.

        Raises:
            TrackingError: it cannot be read.
        """
        document = read_progress(self._path)
        if any(document.get(name) != value for name, value in self._about.items()):
            document = {}
        self.sent: int = document.get("sent", 0)
        self.runs: dict[str, str] = document.get("runs", {})
        self.refused: list[dict[str, str]] = document.get("refused", [])

    def set_run(self, key: str, run_id: str) -> None:
        """Store the id of a run."""
        self.runs[key] = run_id
        self._write()

    def advance(self, end: int) -> None:
        """Store that everything up to an offset was sent."""
        self.sent = end
        self._write()

    def forget(self) -> None:
        """Start over: the store has nothing."""
        self.sent, self.runs, self.refused = 0, {}, []
        self._write()

    def refuse(self, entry: Entry, why: str) -> None:
        """Store that a record was refused; it is not sent again."""
        self.refused.append({"id": entry.id, "kind": entry.kind, "key": entry.key, "why": why})
        self.advance(entry.end)

    def _write(self) -> None:
        own = {"sent": self.sent, "runs": self.runs, "refused": self.refused}
        write_json(self._path, {"schema": SCHEMA, **self._about, **own})


def read_progress(path: Path) -> dict[str, Any]:
    """The contents of the file; empty if there is none.

    Raises:
        TrackingError: it cannot be read or has an unknown schema.
    """
    if not path.exists():
        return {}
    remedy = "remove it to start new MLflow runs"
    return read_json(path, dict[str, Any], schema=_READABLE, error=TrackingError, remedy=remedy)


def unsent(outbox: Outbox, path: Path, uri: str) -> int:
    """The number of records not sent yet to a store, according to the file at ``path``."""
    document = read_progress(path)
    begin = document.get("sent", 0) if document.get("tracking_uri") == uri else 0
    return sum(1 for _ in outbox.entries(begin))
