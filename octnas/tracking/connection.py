"""Connect to an MLflow store, with quick checks first: MLflow itself retries for minutes."""

import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from octnas.io.files import DRAFT, remove_drafts
from octnas.tracking.outbox import Entry, Outbox
from octnas.tracking.progress import Progress
from octnas.tracking.store import (
    ARTIFACTS,
    DATABASES,
    SERVERS,
    AwayError,
    RefusedError,
    Store,
    hide,
    import_mlflow,
    reason,
    tracking_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

OUTBOX_TAG = "octnas.outbox"
FIRST_ANSWER = 5  # seconds that a server has for its first answer
LOCK_WAIT = 20.0  # seconds for an SQLite file that others write to; as long as MLflow waits


@dataclass
class Connection:
    """A store that answers, with the outbox of one run directory."""

    client: "MlflowClient"
    store: Store
    experiment_id: str
    outbox: Outbox
    progress: Progress
    _steps: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def find_run(self, run_id: str) -> "Run | None":
        """A run of the store, which may be deleted; None if the store does not know it."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None

    def run_id(self, entry: Entry) -> str:
        """MLflow's id of the run that a record belongs to.

        Raises:
            RefusedError: MLflow does not have it.
        """
        if (found := self.progress.runs.get(entry.key)) is None:
            raise RefusedError(f"its run {entry.key!r} is not in MLflow")
        return found

    def file(self, entry: Entry) -> Path:
        """The file of a record.

        Raises:
            RefusedError: it no longer exists.
        """
        if (found := self.outbox.file(entry)) is None:
            raise RefusedError(f"{entry.values['path']} no longer exists")
        return found

    def steps(self, run_id: str, metric: str) -> set[int]:
        """The steps of a metric that a run has; the store is asked once."""
        if (run_id, metric) not in self._steps:
            history = self.client.get_metric_history(run_id, metric)
            self._steps[run_id, metric] = {point.step for point in history}
        return self._steps[run_id, metric]


def open_connection(
    store: Store, experiment: str, outbox: Outbox, progress_file: Path
) -> Connection:
    """Connect to a store; the experiment is created if it is new.

    Raises:
        AwayError: the store does not answer, or not now.
        TrackingError: it cannot be used.
    """
    mlflow = import_mlflow()
    if store.kind in SERVERS:
        _check_server(store, experiment)
    if store.kind in DATABASES:
        _check_database(store)
    with tracking_errors(store):
        client = _open(mlflow, store)
        experiment_id = _experiment_id(client, store, experiment)
        progress = Progress(progress_file, uri=store.shown, experiment_id=experiment_id)
        connection = Connection(client, store, experiment_id, outbox, progress)
        run_ids = set(progress.runs.values())
        if run_ids and not any(connection.find_run(one) for one in run_ids):
            progress.forget()  # another database at the same address
    outbox.discard_until(progress.sent)
    return connection


def _open(mlflow: Any, store: Store) -> "MlflowClient":
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=store.uri)
    except UnsupportedModelRegistryStoreURIException:
        known = ", ".join((*DATABASES, *SERVERS, "databricks"))
        raise store.error("unknown kind of store", f"allowed: {known}") from None
    except Exception as error:
        from_alembic = type(error).__module__.startswith("alembic.")
        if not from_alembic and "database schema" not in str(error):
            raise
        raise store.error(
            f"the database belongs to another version of MLflow than {mlflow.__version__}",
            "back it up and run `mlflow db upgrade` with this URI, or set another tracking.uri",
        ) from None
    return client


def _check_server(store: Store, experiment: str) -> None:
    """Ask the server once, without MLflow's retries."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    def away(problem: str) -> AwayError:
        remedy = "start it, set another tracking.uri, or tracking.enabled: false"
        return AwayError(str(store.error(problem, remedy)))

    try:
        response = http_request(
            get_default_host_creds(store.uri),
            "/api/2.0/mlflow/experiments/get-by-name",
            "GET",
            max_retries=0,
            timeout=FIRST_ANSWER,
            raise_on_status=False,
            params={"experiment_name": experiment},
        )
    except MlflowException as error:
        raise away(f"no MLflow server answers ({reason(error, store)})") from None
    status, text = response.status_code, response.text
    answer = f"HTTP {status}: {' '.join(hide(text, store).split())[:120]}"
    if status in (401, 403):
        raise store.error(
            f"the server refuses access ({answer})",
            "correct user name and password in the URI, or set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if status == 429 or status >= 500:
        raise away(f"the server reports a problem ({answer})")
    if not ((status == 200 and '"experiment"' in text) or "RESOURCE_DOES_NOT_EXIST" in text):
        raise store.error(f"not an MLflow server ({answer})")


def _check_database(store: Store) -> None:
    """Open the database once; MLflow tries ten times, for 100 seconds."""
    from mlflow.store.db.utils import create_sqlalchemy_engine

    try:
        engine = create_sqlalchemy_engine(store.uri)
    except ModuleNotFoundError as error:
        raise store.error(f"needs the Python package {error.name!r}", "install it") from None
    except Exception:  # noqa: BLE001  ValueError or SQLAlchemy's; may quote parts of the password
        raise store.error(
            "not a database URL", "percent-encode special characters in the password"
        ) from None
    if store.kind == "sqlite":
        _check_sqlite(store, engine.url.database or ":memory:")
        return
    with tracking_errors(store):
        engine.connect().close()
        engine.dispose()


def _check_sqlite(store: Store, database: str) -> None:
    path = Path(database)
    if database == ":memory:":
        raise store.error("an in-memory database keeps nothing", "give sqlite:////absolute/path")
    with tracking_errors(store, "cannot use the SQLite file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(path, stale=True)
        if not path.exists():
            _create(path, store.folder / ARTIFACTS)
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT)) as database_file:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {name for (name,) in database_file.execute(query)}
            database_file.execute("BEGIN IMMEDIATE")  # fails without write permission
    if tables and "alembic_version" not in tables:
        raise store.error("an SQLite database, but not one of MLflow's")


def _create(path: Path, artifacts: Path) -> None:
    """Create an SQLite store under a temporary name first.

    MLflow creates the tables in many steps: a process that is killed meanwhile would leave half a
    database, and a second process would find one.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(f".{path.name}{DRAFT}{uuid.uuid4().hex}")
    try:
        temporary.touch()  # fails at once without write permission; MLflow tries for 100 seconds
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri()).engine.dispose()
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)  # unlike renaming, never replaces a file
    except FileExistsError:
        pass  # another process was faster; its file is as good
    except OSError:
        temporary.replace(path)  # a file system without hard links


def _experiment_id(client: "MlflowClient", store: Store, name: str) -> str:
    from mlflow.exceptions import MlflowException

    location = store.artifacts.as_uri() if store.artifacts else None
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise store.error(
            f"experiment {name!r} was deleted in MLflow", "restore it, or set tracking.experiment"
        )
    former = str(found.artifact_location)
    if not store.source and former != location and former.startswith("file:"):
        # The default store was moved; MLflow would write artifacts to the former place.
        folder = Path(unquote(urlsplit(former).path))
        if not folder.exists():
            raise store.error(
                f"was moved: the artifacts of experiment {name!r} belong to {folder}",
                "move it back, or set tracking.experiment to a new name",
            )
    return str(found.experiment_id)
