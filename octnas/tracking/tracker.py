"""Recording a run directory in MLflow."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octnas.errors import TrackingError
from octnas.tracking.connect import connect
from octnas.tracking.failures import tracking_errors
from octnas.tracking.run_ids import RunIds
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.stores import find_store, view_command
from octnas.tracking.values import LONGEST_NAME, clean_key, cut, flat_params, flat_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
SUPERSEDED_TAG = "octnas.superseded"
CHANGED_TAG = "octnas.changed."


@dataclass(frozen=True)
class _Connection:
    client: "MlflowClient"
    experiment_id: str
    ids: RunIds


class Tracker:
    """MLflow runs of one run directory, by key.

    MLflow is imported and the store reached when the first run is started. Nothing of MLflow's
    global state (tracking URI, active run) is used or changed, except for environment variables
    (`octnas.tracking.environment`). One process at a time may write to a run directory.

    Every method raises `octnas.errors.TrackingError` if MLflow cannot be reached or refuses what
    it is sent. With ``enabled: false`` they all do nothing.
    """

    def __init__(
        self, settings: TrackingSettings, *, experiment: str, store: Path, ids_file: Path
    ) -> None:
        """Find the store; it is not opened yet.

        Args:
            settings: section ``tracking`` of the experiment.
            experiment: name of the MLflow experiment if the settings give none.
            store: folder of the default SQLite file (``runs/``).
            ids_file: JSON file in the run directory that remembers MLflow's ids.

        Raises:
            TrackingError: the tracking URI is malformed.
        """
        self._enabled = settings.enabled
        self._experiment = settings.experiment or experiment
        self._ids_file = ids_file
        self._connection: _Connection | None = None
        self._open: set[str] = set()
        self._steps: dict[tuple[str, str], set[int]] = {}
        if self._enabled:
            self._store = find_store(settings, store)

    def start(
        self,
        key: str,
        name: str,
        *,
        params: Mapping[str, object] = {},
        tags: Mapping[str, str] = {},
        parent: str | None = None,
        again: bool = False,
    ) -> None:
        """Go on with the run known under ``key``, or create it.

        Args:
            key: the run's name within the run directory, such as ``"retrain/vanilla"``.
            name: the run's name in MLflow.
            params: nested mappings are flattened with dots; what is too long for MLflow is cut.
                MLflow never changes a parameter: if a run that goes on has another value, the new
                one becomes the tag ``octnas.changed.<parameter>``.
            tags: text by name.
            parent: key of the run that this one is nested in.
            again: the work is done anew: a run known under ``key`` stays, with the tag
                ``octnas.superseded``, and a new one is created.
        """
        if not self._enabled:
            return
        connection = self._connected()
        all_tags = flat_tags(tags)
        if parent is not None:
            all_tags[PARENT_TAG] = self._run_id(parent)
        name = cut(name, LONGEST_NAME)
        with tracking_errors(self._store):
            known = _find(connection, key)
            if known is not None and again:
                _supersede(connection.client, known)
                known = None
            if known is None:
                known = _create(connection, key, name, all_tags)
            elif (known.info.status, known.info.run_name) != ("RUNNING", name):
                connection.client.update_run(known.info.run_id, status="RUNNING", name=name)
            _record(connection.client, known, flat_params(params), all_tags)
        self._open.add(key)
        self._steps = {known: steps for known, steps in self._steps.items() if known[0] != key}

    def metrics(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record metrics of one step; MLflow stores ±∞ as ±1.8e308, and NaN as it is."""
        self.batch(key, [(step, values)])

    def metrics_once(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record metrics of one step that the run does not have: work that goes on repeats some."""
        if not self._enabled:
            return
        new = {name: value for name, value in values.items() if step not in self._known(key, name)}
        if new:
            self.metrics(key, new, step)
        for name in new:
            self._known(key, name).add(step)

    def batch(self, key: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Record metrics of many steps, in as few calls as MLflow's limits allow."""
        if not self._enabled:
            return
        client, run_id = self._connected().client, self._run_id(key)
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(clean_key(name), float(value), now, int(step))
            for step, values in rows
            for name, value in values.items()
        ]
        with tracking_errors(self._store):
            client.log_batch(run_id, metrics=metrics)  # in calls of 1,000

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Store a file, or a directory under its name, in the run's folder ``folder``.

        Raises:
            FileNotFoundError: ``path`` does not exist.
        """
        if not self._enabled:
            return
        if not path.exists():
            raise FileNotFoundError(path)
        client, run_id = self._connected().client, self._run_id(key)
        with tracking_errors(self._store):
            client.log_artifact(run_id, str(path), folder or None)

    def finish(self, key: str, *, failed: bool = False) -> None:
        """Set the run's status to finished or failed, and its end to now."""
        if not self._enabled:
            return
        client, run_id = self._connected().client, self._run_id(key)
        self._open.discard(key)
        with tracking_errors(self._store):
            client.set_terminated(run_id, status="FAILED" if failed else "FINISHED")

    def close(self, *, failed: bool = False) -> None:
        """Finish the runs that were started here and are still open.

        Args:
            failed: the work breaks off with an error; a store that cannot be reached is no second
                one then. Going on later starts the runs again.
        """
        for key in sorted(self._open):
            with suppress(*[TrackingError] if failed else []):
                self.finish(key, failed=failed)

    def view_command(self) -> str:
        """The shell command that opens the store, or the address of its server; no passwords."""
        return view_command(self._store) if self._enabled else ""

    def _connected(self) -> _Connection:
        if self._connection is None:
            client, experiment_id = connect(self._store, self._experiment)
            ids = RunIds(self._ids_file, uri=self._store.shown, experiment_id=experiment_id)
            self._connection = _Connection(client, experiment_id, ids)
        return self._connection

    def _known(self, key: str, name: str) -> set[int]:
        """The steps that the run has of a metric; asked for once."""
        if (key, name) not in self._steps:
            client, run_id = self._connected().client, self._run_id(key)
            with tracking_errors(self._store):
                history = client.get_metric_history(run_id, clean_key(name))
            self._steps[key, name] = {entry.step for entry in history}
        return self._steps[key, name]

    def _run_id(self, key: str) -> str:
        run_id = self._connected().ids.get(key)
        if run_id is None:
            raise KeyError(f"no MLflow run was started under {key!r}")
        return run_id


def _find(connection: _Connection, key: str) -> "Run | None":
    """The run known under ``key``, unless it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    run_id = connection.ids.get(key)
    if run_id is None:
        return None
    try:
        run = connection.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _create(connection: _Connection, key: str, name: str, tags: Mapping[str, str]) -> "Run":
    run = connection.client.create_run(connection.experiment_id, run_name=name, tags=dict(tags))
    connection.ids.set(key, run.info.run_id)
    return run


def _supersede(client: "MlflowClient", run: "Run") -> None:
    client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")
    if run.info.status == "RUNNING":  # its process died
        client.set_terminated(run.info.run_id, status="KILLED")


def _record(
    client: "MlflowClient", run: "Run", params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """Send parameters and tags that the run does not have yet."""
    from mlflow.entities import Param, RunTag

    known = run.data.params
    new = [Param(name, text) for name, text in params.items() if name not in known]
    changed = {
        clean_key(CHANGED_TAG + name): text
        for name, text in params.items()
        if known.get(name, text) != text
    }
    wanted = {**tags, **changed}
    new_tags = [RunTag(k, v) for k, v in wanted.items() if run.data.tags.get(k) != v]
    client.log_batch(run.info.run_id, params=new, tags=new_tags)
