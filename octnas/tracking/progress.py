"""How far an outbox was sent to a store, and which MLflow runs belong to the run directory."""

from pathlib import Path
from typing import Any

from octnas.errors import TrackingError
from octnas.io.files import read_json, remove_drafts, write_json
from octnas.tracking.outbox import Entry, Outbox

FILE = "tracking.json"
SCHEMA = 2
_READ = (1, SCHEMA)  # 1 knew of no outbox


class SentProgress:
    """MLflow's run ids by key and the position in the outbox, kept in a JSON file.

    They hold for one store and experiment; for others the file starts anew, so that another store
    is told everything.

    Attributes:
        sent: bytes of the outbox up to the end of the last record that was sent.
        refused: records that the store has refused: id, kind, key and ``why``.
    """

    def __init__(self, path: Path, *, uri: str, experiment_id: str) -> None:
        """Read the file.

        Args:
            path: the JSON file.
            uri: the tracking URI without its password.
            experiment_id: MLflow's id of the experiment.

        Raises:
            TrackingError: the file cannot be read or has an unknown schema.
        """
        self._path = path
        self._about = {"tracking_uri": uri, "experiment_id": experiment_id}
        self.sent: int = 0
        self.refused: list[dict[str, str]] = []
        self._runs: dict[str, str] = {}
        # Only one process sends, and only that one has this.
        remove_drafts(path)
        self.read()

    def read(self) -> None:
        """Read the file, if there is one: another process may have sent something.

        Raises:
            TrackingError: it cannot be read or has an unknown schema.
        """
        document = read_progress(self._path)
        if any(document.get(name) != value for name, value in self._about.items()):
            document = {}
        self.sent = document.get("sent", 0)
        self.refused = list(document.get("refused", ()))
        self._runs = dict(document.get("runs", {}))

    @property
    def run_ids(self) -> frozenset[str]:
        """All of MLflow's ids."""
        return frozenset(self._runs.values())

    def get(self, key: str) -> str | None:
        """The run id under ``key``; None if there is none."""
        return self._runs.get(key)

    def set(self, key: str, run_id: str) -> None:
        """Remember a run id; the file is whole before and after."""
        self._runs[key] = run_id
        self._write()

    def advance(self, end: int) -> None:
        """Remember that all up to a position was sent."""
        self.sent = end
        self._write()

    def forget(self) -> None:
        """Start anew: the store has nothing."""
        self.sent, self.refused, self._runs = 0, [], {}
        self._write()

    def refuse(self, entry: Entry, why: str) -> None:
        """Remember that a record was refused, which therefore is not sent again."""
        found = {"id": entry.id, "kind": entry.kind, "key": entry.key, "why": why}
        self.refused.append(found)
        self.advance(entry.end)

    def _write(self) -> None:
        own = {"sent": self.sent, "runs": self._runs, "refused": self.refused}
        write_json(self._path, {"schema": SCHEMA, **self._about, **own})


def read_progress(path: Path) -> dict[str, Any]:
    """The file as it is; empty where there is none.

    Raises:
        TrackingError: it cannot be read or has an unknown schema.
    """
    if not path.exists():
        return {}
    remedy = "remove it to start new MLflow runs"
    return read_json(path, dict[str, Any], schema=_READ, error=TrackingError, remedy=remedy)


def unsent(outbox: Outbox, path: Path, uri: str) -> int:
    """How many records a store has not been sent, as far as the file at ``path`` says."""
    document = read_progress(path)
    begin = document.get("sent", 0) if document.get("tracking_uri") == uri else 0
    return sum(1 for _ in outbox.entries(begin))
