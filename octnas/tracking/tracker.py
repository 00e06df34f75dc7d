"""Recording a run directory in MLflow.

Sending what a run could not send, once its store is back.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from octnas.errors import TrackingError
from octnas.io.credentials import redact
from octnas.tracking.connection import open_connection
from octnas.tracking.models import logged_name, registered_name
from octnas.tracking.outbox import BusyError, Outbox, flat_params, flat_tags
from octnas.tracking.progress import FILE, read_progress, unsent
from octnas.tracking.sender import METRICS, Sender, send, settle
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.store import SERVERS, find_store, import_mlflow, view_command

FOLDER = "mlflow"
CLOSE_WAIT = 60.0  # seconds that the end of the work waits for what is not sent yet

# MLflow's tag by which its page and `mlflow.load_table` know what is a table.
_TABLES_TAG = "mlflow.loggedArtifacts"


class Tracker:
    """MLflow runs of one run directory, by key.

    Everything is written to an outbox in the run directory first, and sent from there by a thread:
    a store that is away or slow neither stops nor slows the work, and what could not be sent is
    sent by `octnas sync` or with the next record. MLflow is imported and the store reached with
    the first record. Nothing of MLflow's global state (tracking URI, active run) is used or
    changed, except for environment variables (`octnas.tracking.store`). One process at a
    time may write to a run directory.

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
            directory: of the run; the folder that holds it holds the default SQLite file too.
            say: for a line about a store that is away.

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
        # Runs that were begun anew and have nothing yet, with what they were begun with.
        self._empty: dict[str, Mapping[str, Any]] = {}
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
                ``octnas.superseded``, and a new one is created; unless that run was begun anew
                with the same and has nothing yet, as after a process that was killed just then.

        Raises:
            TrackingError: the store is there and cannot be used as it is, found with the first
                record only: the password is wrong, for example.
        """
        if not self.enabled:
            return
        self._begin()
        if parent is not None:
            self._check(parent)
        self._keys.add(key)
        self._open.add(key)
        begun: dict[str, Any] = {
            "name": redact(name),
            "params": flat_params(params),
            "tags": flat_tags(tags),
            "parent": parent,
        }
        again = again and self._empty.get(key) != begun
        self._note("start", key, {**begun, "again": again})
        self._add("start", key, **begun, again=again)

    def metrics(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record metrics of one step; MLflow stores ±∞ as ±1.8e308, and NaN as it is."""
        self.batch(key, [(step, values)])

    def metrics_once(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record metrics of one step that the run does not have: work that goes on repeats some."""
        self.batch(key, [(step, values)], once=True)

    def batch(
        self, key: str, rows: Sequence[tuple[int, Mapping[str, float]]], *, once: bool = False
    ) -> None:
        """Record metrics of many steps.

        Args:
            key: of the run.
            rows: steps with metrics by name.
            once: leave out the steps of a metric that the run has.
        """
        table = [[step, {name: _number(x) for name, x in row.items()}] for step, row in rows]
        self._known(METRICS, key, rows=table, once=once)

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Store a file, or a directory under its name, in the run's folder ``folder``.

        Raises:
            FileNotFoundError: ``path`` does not exist.
        """
        self._known("artifact", key, path, folder=folder)

    def table(self, key: str, path: Path) -> None:
        """Store a JSON table that ``mlflow.load_table`` reads: ``columns`` and ``data`` by row."""
        self.artifact(key, path)
        tables = [{"path": path.name, "type": "table"}]
        self._known("tags", key, tags={_TABLES_TAG: str(tables).replace("'", '"')})

    def model(
        self, key: str, folder: Path, *, digest: str, alias: str = "", tags: Mapping[str, str] = {}
    ) -> None:
        """Log a model and register it under the experiment's name.

        The same weights in the same run are registered once.

        Args:
            key: of the run.
            folder: an MLflow model, see `octnas.tracking.models.save_model`.
            digest: of its weights.
            alias: that points to this version from now on.
            tags: text by name.
        """
        self._known(
            "model",
            key,
            folder,
            name=logged_name(folder.name),
            registered=registered_name(self._experiment),
            digest=digest,
            alias=alias,
            tags=flat_tags(tags),
        )

    def finish(self, key: str, *, failed: bool = False) -> None:
        """Set the run's status to finished or failed, and its end to now."""
        self._known("finish", key, failed=failed)
        self._open.discard(key)

    def close(self, *, failed: bool = False, seconds: float = CLOSE_WAIT) -> None:
        """Finish the runs that were started here, and send what is left, for a bounded time.

        If the work has not failed, that holds for what a killed process has left, too.

        Args:
            failed: the work breaks off with an error. Going on later starts the runs again.
            seconds: that it may take.
        """
        if not self.enabled:
            return
        problem: TrackingError | None = None
        if self._sender is None and not failed:
            try:
                self._take_over()
            except TrackingError as error:
                problem = error
        for key in sorted(self._open):
            self.finish(key, failed=failed)
        if self._sender is not None:
            self._sender.close(seconds)
            problem, self._sender = self._sender.problem, None
        self._say_what_is_left(str(problem) if problem else "")

    def _take_over(self) -> None:
        """Where nothing was recorded here, go on with what a killed process has left.

        Of the runs that it has left open, those that others are nested in end here; the others are
        those of work that is to be gone on with.

        Raises:
            TrackingError: as `start`.
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

    def view_command(self) -> str:
        """The shell command that opens the store, or the address of its server; no passwords."""
        return view_command(self._store) if self.enabled else ""

    def _say_what_is_left(self, why: str) -> None:
        if left := unsent(self._outbox, self._progress_file, self._store.shown):
            self._say(
                f"MLflow: {left} records are not sent yet{f' ({why})' if why else ''}; they are "
                f"kept, and `octnas sync {self._directory}` sends them"
            )
        refused = read_progress(self._progress_file).get("refused", [])
        if len(refused) > self._refused:
            self._say(
                f"MLflow: refused {len(refused) - self._refused} records, the last one: "
                f"{refused[-1]['why']}; see {self._progress_file}"
            )
        self._refused = len(refused)

    def _known(self, kind: str, key: str, path: Path | None = None, **values: Any) -> None:
        """Record something of a run that was started, now or earlier."""
        if not self.enabled:
            return
        if path is not None and not path.exists():
            raise FileNotFoundError(path)
        self._begin()
        self._check(key)
        self._note(kind, key, values)
        self._add(kind, key, path, **values)

    def _note(self, kind: str, key: str, values: Mapping[str, Any]) -> None:
        """Keep in mind which runs have nothing yet; that one has ended is nothing."""
        if kind == "start" and values["again"]:
            self._empty[key] = {name: values[name] for name in values if name != "again"}
        elif kind not in ("start", "finish"):
            self._empty.pop(key, None)

    def _add(self, kind: str, key: str, path: Path | None = None, **values: Any) -> None:
        assert self._sender is not None
        if path is None:
            self._outbox.add(kind, key, **values)
        else:
            self._outbox.add_file(kind, key, path, **values)
        self._sender.wake()

    def _begin(self) -> None:
        """Open the outbox, and begin to send."""
        if self._sender is not None:
            return
        document = read_progress(self._progress_file)
        self._refused = len(document.get("refused", []))
        self._outbox.open()
        self._keys |= set(document.get("runs", {}))
        for entry in self._outbox.entries():
            if entry.kind == "start":
                self._keys.add(entry.key)
            self._note(entry.kind, entry.key, entry.values)
        import_mlflow()  # here: two threads that import the same get in each other's way
        sender = Sender(self._store, self._experiment, self._outbox, self._progress_file)
        if (away := sender.first_answer()) is not None:
            self._say(f"MLflow: {away}. The work goes on; its records are kept")
        self._sender = sender

    def _check(self, key: str) -> None:
        if key not in self._keys:
            raise KeyError(f"no MLflow run was started under {key!r}")


def _number(value: float) -> float | str:
    """As JSON takes it, which knows neither NaN nor infinity."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


BUSY_WAIT = 10.0  # seconds that another sender of the same run directory may take


def sync_runs(settings: TrackingSettings, experiment: str, directory: Path) -> tuple[str, ...]:
    """Send what is left in the outbox of a run directory.

    Args:
        settings: section ``tracking`` of the experiment.
        experiment: name of the MLflow experiment if the settings give none.
        directory: of the run.

    Returns:
        Lines that say what was sent, and what was refused.

    Raises:
        TrackingError: the store is away or cannot be used; then nothing is lost.
    """
    if not settings.enabled:
        raise TrackingError(f"{directory}: tracking.enabled: found false, so nothing is recorded")
    store = find_store(settings, directory.resolve().parent)
    outbox, file = Outbox(directory / FOLDER), directory / FILE
    left, nothing = unsent(outbox, file, store.shown), f"nothing to send to {store.shown}"
    # A server may have carried out something twice long after all was sent, a database does not.
    if not left and not (store.kind in SERVERS and read_progress(file).get("runs")):
        return (nothing,)
    import_mlflow()
    try:
        with outbox.sending(BUSY_WAIT):
            connection = open_connection(store, settings.experiment or experiment, outbox, file)
            refused = len(connection.progress.refused)
            sent = send(connection)
            doubles = settle(connection)
    except BusyError:
        raise
    except TrackingError as error:
        if not left:
            return (f"{nothing}; what it may have been told twice was not looked for: {error}",)
        still = unsent(outbox, file, store.shown)
        raise TrackingError(f"{error}; sent {left - still} records, {still} are kept") from None
    lines = [f"sent to {store.shown}: {_counted(sent)}" if sent else nothing]
    if doubles:
        lines.append(f"removed {doubles} runs and models that the server had made twice")
    if why := connection.progress.refused[refused:]:
        lines.append(f"refused {len(why)} records, see {file}; the first one: {why[0]['why']}")
    return tuple(lines)


def _counted(sent: Counter[str]) -> str:
    words = {"start": "runs", "metrics": "metric values", "artifact": "artifacts"}
    words |= {"model": "models", "finish": "ends of runs"}
    found = [f"{sent[kind]} {word}" for kind, word in words.items() if sent[kind]]
    return ", ".join(found) or "nothing"
