"""Record a run directory in MLflow, now or later (`octnas sync`)."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from octnas.errors import TrackingError
from octnas.io.credentials import redact
from octnas.tracking.connection import open_connection
from octnas.tracking.models import logged_name, registered_name
from octnas.tracking.outbox import BusyError, Outbox, clean_tags, flat_params
from octnas.tracking.progress import FILE, read_progress, unsent
from octnas.tracking.records import METRICS, remove_duplicates, send
from octnas.tracking.sender import Sender
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.store import SERVERS, find_store, import_mlflow, view_command

FOLDER = "mlflow"
CLOSE_WAIT = 60.0  # seconds to send the remaining records at the end
BUSY_WAIT = 10.0  # seconds to wait for another process that sends the same records

# MLflow's tag by which its page and `mlflow.load_table` recognise tables.
_TABLES_TAG = "mlflow.loggedArtifacts"


class Tracker:
    """MLflow runs of one run directory, by key.

    Everything is written to an outbox in the run directory first, and sent from there by a thread:
    an unreachable or slow store neither stops nor slows the run. What could not be sent is sent
    with the next record or by `octnas sync`. MLflow is imported and the store opened with the
    first record. MLflow's global state (tracking URI, active run) is neither used nor changed,
    except for environment variables (`octnas.tracking.store`). Requires the run lock.

    With ``enabled: false`` all methods do nothing.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        experiment: str,
        directory: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Find the store; it is not opened yet.

        Args:
            settings: section ``tracking`` of the experiment.
            experiment: name of the MLflow experiment if the settings give none.
            directory: of the run; the default SQLite file is beside it.
            say: prints a line about an unreachable store.

        Raises:
            TrackingError: the tracking URI is malformed.
        """
        self.enabled = settings.enabled
        self._experiment = settings.experiment or experiment
        self._directory, self._say = directory, say
        self._progress_file = directory / FILE
        self._outbox = Outbox(directory / FOLDER)
        self._sender: Sender | None = None
        self._keys: set[str] = set()
        self._open: set[str] = set()
        self._refused = 0
        if self.enabled:
            self._store = find_store(settings, directory.resolve().parent)

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
        """Resume the run known under ``key``, or create it.

        Args:
            key: the run's name within the run directory, such as ``"retrain/vanilla"``.
            name: the run's name in MLflow.
            params: nested mappings are flattened with dots. MLflow never changes a parameter: the
                new value of a resumed run becomes the tag ``octnas.changed.<parameter>``.
            tags: text by name.
            parent: key of the run that this one is nested in.
            again: the work starts over: a run known under ``key`` is tagged
                ``octnas.superseded``, and a new one is created; unless a process that was killed
                has just created that run with the same arguments and nothing in it.

        Raises:
            TrackingError: the store is reachable but cannot be used, such as with a wrong
                password; found with the first record only.
        """
        if not self.enabled:
            return
        self._begin()
        if parent is not None:
            self._check(parent)
        self._keys.add(key)
        self._open.add(key)
        values: dict[str, Any] = {
            "name": redact(name),
            "params": flat_params(params),
            "tags": clean_tags(tags),
            "parent": parent,
        }
        self._add("start", key, **values, again=again and not self._is_new(key, values))

    def metrics(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record metrics of one step, see `batch`."""
        self.batch(key, [(step, values)])

    def batch(self, key: str, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Record metrics of many steps; steps of a metric that the run already has are left out.

        MLflow stores ±∞ as ±1.8e308, and NaN as it is.

        Args:
            key: of the run.
            rows: steps with metrics by name.
        """
        table = [[step, {name: _number(x) for name, x in row.items()}] for step, row in rows]
        self._record(METRICS, key, rows=table)

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Store a file, or a folder under its name, in the run's artifact folder ``folder``.

        Raises:
            FileNotFoundError: ``path`` does not exist.
        """
        self._record("artifact", key, path, folder=folder)

    def table(self, key: str, path: Path) -> None:
        """Store a JSON table for ``mlflow.load_table``: ``columns`` and ``data`` by row."""
        self.artifact(key, path)
        tables = json.dumps([{"path": path.name, "type": "table"}])
        self._record("tags", key, tags={_TABLES_TAG: tables})

    def model(
        self, key: str, folder: Path, *, digest: str, alias: str = "", tags: Mapping[str, str] = {}
    ) -> None:
        """Log a model and register it under the experiment's name, once per run and weights.

        Args:
            key: of the run.
            folder: an MLflow model, see `octnas.tracking.models.save_model`.
            digest: of its weights.
            alias: points to this version from now on.
            tags: text by name.
        """
        self._record(
            "model",
            key,
            folder,
            name=logged_name(folder.name),
            registered=registered_name(self._experiment),
            digest=digest,
            alias=alias,
            tags=clean_tags(tags),
        )

    def finish(self, key: str, *, failed: bool = False) -> None:
        """Set the run's status to finished or failed, and its end time to now."""
        self._record("finish", key, failed=failed)
        self._open.discard(key)

    def close(self, *, failed: bool = False, seconds: float = CLOSE_WAIT) -> None:
        """Finish the open runs and send the remaining records, for at most ``seconds``.

        Unless the work has failed, this includes leftovers of a killed process.

        Args:
            failed: the work was interrupted by an error; resuming it resumes its runs.
            seconds: time limit.
        """
        if not self.enabled:
            return
        problem: TrackingError | None = None
        if self._sender is None and not failed:
            try:
                self._adopt()
            except TrackingError as error:
                problem = error
        for key in sorted(self._open):
            self.finish(key, failed=failed)
        if self._sender is not None:
            self._sender.close(seconds)
            problem, self._sender = self._sender.problem, None
        if left := unsent(self._outbox, self._progress_file, self._store.shown):
            why = f" ({problem})" if problem else ""
            self._say(
                f"MLflow: {left} records are not sent yet{why}; they are kept: `octnas sync "
                f"{self._directory}` sends them"
            )
        refused = read_progress(self._progress_file).get("refused", [])
        if len(refused) > self._refused:
            self._say(
                f"MLflow: refused {len(refused) - self._refused} records, the last one: "
                f"{refused[-1]['why']}; see {self._progress_file}"
            )
        self._refused = len(refused)

    def view_command(self) -> str:
        """The shell command that opens the store, or its server's address; no passwords."""
        return view_command(self._store) if self.enabled else ""

    def _adopt(self) -> None:
        """Take over leftovers of a killed process, where nothing new was recorded.

        Of its open runs only those without a parent end here; the others belong to interrupted
        work.
        """
        left: set[str] = set()
        for entry in self._outbox.entries():
            if entry.kind == "start" and entry.values["parent"] is None:
                left.add(entry.key)
            elif entry.kind == "finish":
                left.discard(entry.key)
        if left or unsent(self._outbox, self._progress_file, self._store.shown):
            self._begin()
            self._open |= left

    def _is_new(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether a run was started over with the same arguments and has no contents yet."""
        new = False
        for entry in self._outbox.entries():
            if entry.key != key or entry.kind == "finish":
                continue
            if entry.kind != "start":
                new = False
            elif entry.values["again"]:
                new = entry.values == {**values, "again": True}
        return new

    def _record(self, kind: str, key: str, path: Path | None = None, **values: Any) -> None:
        """Record something in a run that was started, by this process or an earlier one."""
        if not self.enabled:
            return
        if path is not None and not path.exists():
            raise FileNotFoundError(path)
        self._begin()
        self._check(key)
        self._add(kind, key, path, **values)

    def _add(self, kind: str, key: str, path: Path | None = None, **values: Any) -> None:
        assert self._sender is not None
        self._outbox.add(kind, key, path, **values)
        self._sender.wake()

    def _begin(self) -> None:
        """Open the outbox, and start to send."""
        if self._sender is not None:
            return
        document = read_progress(self._progress_file)
        self._refused = len(document.get("refused", []))
        self._outbox.open()
        self._keys |= {entry.key for entry in self._outbox.entries() if entry.kind == "start"}
        self._keys |= set(document.get("runs", {}))
        import_mlflow()  # before the thread starts: concurrent imports get in each other's way
        sender = Sender(self._store, self._experiment, self._outbox, self._progress_file)
        if (away := sender.first_answer()) is not None:
            self._say(f"MLflow: {away}. The run continues, and its records are kept")
        self._sender = sender

    def _check(self, key: str) -> None:
        if key not in self._keys:
            raise KeyError(f"no MLflow run was started under {key!r}")


def _number(value: float) -> float | str:
    """As JSON can hold it, which has neither NaN nor infinity."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def sync_runs(settings: TrackingSettings, experiment: str, directory: Path) -> tuple[str, ...]:
    """Send the remaining records of a run directory; arguments as for `Tracker`.

    Returns:
        Lines about what was sent and what was refused.

    Raises:
        TrackingError: the store is unreachable or cannot be used; the records are kept.
    """
    if not settings.enabled:
        raise TrackingError(f"{directory}: tracking.enabled: found false, so nothing is recorded")
    store = find_store(settings, directory.resolve().parent)
    outbox, file = Outbox(directory / FOLDER), directory / FILE
    left, nothing = unsent(outbox, file, store.shown), f"nothing to send to {store.shown}"
    # Unlike a database, a server may create duplicates long after everything was sent.
    if not left and not (store.kind in SERVERS and read_progress(file).get("runs")):
        return (nothing,)
    import_mlflow()
    try:
        with outbox.sending(BUSY_WAIT):
            connection = open_connection(store, settings.experiment or experiment, outbox, file)
            refused = len(connection.progress.refused)
            sent = send(connection)
            removed = remove_duplicates(connection)
    except BusyError:
        raise
    except TrackingError as error:
        if not left:
            return (f"{nothing}; could not look for duplicates: {error}",)
        still = unsent(outbox, file, store.shown)
        raise TrackingError(f"{error}; sent {left - still} records, {still} are kept") from None
    lines = [f"sent to {store.shown}: {_counted(sent)}" if sent else nothing]
    if removed:
        lines.append(f"removed {removed} duplicate runs and models that the server had created")
    if why := connection.progress.refused[refused:]:
        lines.append(f"refused {len(why)} records, see {file}; the first one: {why[0]['why']}")
    return tuple(lines)


def _counted(sent: Counter[str]) -> str:
    words = {"start": "runs", "metrics": "metric values", "artifact": "artifacts"}
    words |= {"model": "models", "finish": "ends of runs"}
    found = [f"{sent[kind]} {word}" for kind, word in words.items() if sent[kind]]
    return ", ".join(found) or "nothing"
