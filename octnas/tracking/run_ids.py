"""The file in a run directory that remembers which MLflow runs belong to it."""

import json
from pathlib import Path
from typing import Any

from octnas.errors import TrackingError
from octnas.run_directory import write_json

SCHEMA = 1


class RunIds:
    """MLflow's run ids by key, kept in a JSON file.

    The ids hold for one store and experiment; for others the file starts anew.
    """

    def __init__(self, path: Path, *, uri: str, experiment_id: str) -> None:
        """Read the file, if there is one.

        Args:
            path: the JSON file.
            uri: the tracking URI without its password.
            experiment_id: MLflow's id of the experiment.

        Raises:
            TrackingError: the file cannot be read or has an unknown schema.
        """
        self._path = path
        self._about = {"tracking_uri": uri, "experiment_id": experiment_id}
        document = _read(path)
        same = all(document.get(name) == value for name, value in self._about.items())
        self._runs: dict[str, str] = dict(document["runs"]) if same else {}

    def get(self, key: str) -> str | None:
        """The id under ``key``; None if there is none."""
        return self._runs.get(key)

    def set(self, key: str, run_id: str) -> None:
        """Remember an id; the file is whole before and after."""
        self._runs[key] = run_id
        write_json(self._path, {"schema": SCHEMA, **self._about, "runs": self._runs})


def _read(path: Path) -> dict[str, Any]:
    remedy = "remove it to start new MLflow runs"
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["schema"]
        valid = found != SCHEMA or isinstance(document["runs"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrackingError(f"{path}: cannot be read ({error}); {remedy}") from None
    if found != SCHEMA or not valid:
        raise TrackingError(f"{path}: schema: found {found!r}, allowed: {SCHEMA}; {remedy}")
    return dict(document)
