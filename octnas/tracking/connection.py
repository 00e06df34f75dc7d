"""A store that answers, and what it has of one run directory.

Reaching an MLflow store: quick checks first, since MLflow itself retries for minutes.
"""

import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from octnas.errors import TrackingError
from octnas.io.files import DRAFT, remove_drafts
from octnas.tracking.outbox import Entry, Outbox
from octnas.tracking.progress import SentProgress
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

FIRST_ANSWER = 5  # seconds that a server may take for its first answer
LOCK_WAIT = 20.0  # seconds; what MLflow waits itself for an SQLite file that others write to


def connect(store: Store, experiment: str) -> "tuple[MlflowClient, str]":
    """A client of the store and the id of the experiment, which is created if it is new.

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
        client: MlflowClient = _open(mlflow, store)
        return client, _experiment_id(client, store, experiment)


def _open(mlflow: Any, store: Store) -> Any:
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        return mlflow.MlflowClient(tracking_uri=store.uri)
    except UnsupportedModelRegistryStoreURIException:
        known = ", ".join((*DATABASES, *SERVERS, "databricks"))
        raise store.error("MLflow knows no such store", f"allowed: {known}") from None
    except Exception as error:
        by_alembic = type(error).__module__.startswith("alembic.")
        if not by_alembic and "database schema" not in str(error):
            raise
        raise store.error(
            f"the database belongs to another version of MLflow than {mlflow.__version__}",
            "back it up and run `mlflow db upgrade` with this URI, or set another tracking.uri",
        ) from None


def _check_server(store: Store, experiment: str) -> None:
    """Ask the server once, without MLflow's retries."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

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
        raise _away(store, f"no MLflow server answers there ({reason(error, store)})") from None
    _check_answer(store, response.status_code, response.text)


def _away(store: Store, problem: str) -> AwayError:
    remedy = "start it, set another tracking.uri, or tracking.enabled: false"
    return AwayError(str(store.error(problem, remedy)))


def _check_answer(store: Store, status: int, text: str) -> None:
    said = " ".join(hide(text, store).split())[:120]
    if status in (401, 403):
        raise store.error(
            f"the server refuses access (HTTP {status}: {said})",
            "correct user name and password in the URI, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if status == 429 or status >= 500:
        raise _away(store, f"the server is in trouble (HTTP {status}: {said})")
    if not ((status == 200 and '"experiment"' in text) or "RESOURCE_DOES_NOT_EXIST" in text):
        raise store.error(f"what answers there is no MLflow server (HTTP {status}: {said})")


def _check_database(store: Store) -> None:
    """Open the database once; MLflow tries ten times, for 100 seconds."""
    from mlflow.store.db.utils import create_sqlalchemy_engine

    try:
        engine = create_sqlalchemy_engine(store.uri)
    except ModuleNotFoundError as error:
        raise store.error(f"needs the Python package {error.name!r}", "install it") from None
    except Exception:  # noqa: BLE001  ValueError or SQLAlchemy's; may quote parts of the password
        raise store.error(
            "is not a database's URL", "percent-encode special characters in the password"
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
        raise store.error("a database in memory keeps nothing", "give sqlite:////absolute/path")
    with tracking_errors(store, "the SQLite file cannot be used"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(path, stale=True)
        if not path.exists():
            _create(path, store.folder / ARTIFACTS)
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT)) as database_file:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {name for (name,) in database_file.execute(query)}
            database_file.execute("BEGIN IMMEDIATE")  # fails if it may not be written
    if tables and "alembic_version" not in tables:
        raise store.error("is an SQLite database, but not one of MLflow's")


def _create(path: Path, artifacts: Path) -> None:
    """Create an SQLite store under another name first.

    MLflow creates tables in many steps: a process that is killed among them, or a second one that
    starts meanwhile, would leave or find half a database.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(f".{path.name}{DRAFT}{uuid.uuid4().hex}")
    try:
        temporary.touch()  # MLflow would try for 100 seconds where it may not
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
    if not store.source and found.artifact_location != location:
        _check_moved(store, name, found.artifact_location)
    return str(found.experiment_id)


def _check_moved(store: Store, name: str, location: str) -> None:
    """MLflow remembers where an experiment's artifacts are; it would write to the old place."""
    folder = Path(unquote(urlsplit(location).path))
    if location.startswith("file:") and not folder.exists():
        raise TrackingError(
            f"{store.shown}: was moved: the artifacts of experiment {name!r} belong into {folder}; "
            "move it back, or set tracking.experiment to a new name"
        )


@dataclass
class Connection:
    """A store that answers, and what it has of one run directory.

    Attributes:
        client: of MLflow.
        store: which one.
        experiment_id: of MLflow.
        outbox: the records.
        progress: how far they were sent.
        steps: those that a run has of a metric, by run id and metric.
    """

    client: "MlflowClient"
    store: Store
    experiment_id: str
    outbox: Outbox
    progress: SentProgress
    steps: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def run_id(self, entry: Entry) -> str:
        """MLflow's id of the run that a record belongs to.

        Raises:
            RefusedError: there is none.
        """
        found = self.progress.get(entry.key)
        if found is None:
            raise RefusedError(f"its run {entry.key!r} is not in MLflow")
        return found

    def file(self, entry: Entry) -> Path:
        """The file of a record.

        Raises:
            RefusedError: it is gone.
        """
        found = self.outbox.file(entry)
        if found is None:
            raise RefusedError(f"{entry.values['path']} is gone")
        return found


def open_connection(
    store: Store, experiment: str, outbox: Outbox, progress_file: Path
) -> Connection:
    """Reach the store.

    Raises:
        AwayError: it does not answer, or not now.
        TrackingError: it cannot be used.
    """
    client, experiment_id = connect(store, experiment)
    progress = SentProgress(progress_file, uri=store.shown, experiment_id=experiment_id)
    with tracking_errors(store):
        if progress.run_ids and not any(_exists(client, one) for one in progress.run_ids):
            # Another database behind the same address: it is told everything.
            progress.forget()
    outbox.discard_all(progress.sent)
    return Connection(client, store, experiment_id, outbox, progress)


def _exists(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)  # also one that was deleted, which the store still has
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
