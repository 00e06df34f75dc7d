"""Which MLflow store is meant, and how to look at it."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from octnas.credentials import redact
from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")
FILE_NAME = "mlflow.db"
ARTIFACTS = "mlartifacts"
PORT = 5000


@dataclass(frozen=True)
class Store:
    """An MLflow store.

    Attributes:
        uri: the tracking URI, with its password.
        source: the setting that it comes from; empty for the default store.
        folder: where the artifacts of new experiments go if no server decides that.
    """

    uri: str = field(repr=False)
    source: str
    folder: Path

    @property
    def kind(self) -> str:
        """The scheme without the driver: ``"sqlite"``, ``"http"``; empty for a folder."""
        if self.uri in ("databricks", "databricks-uc", "uc"):
            return self.uri
        return self.uri.partition(":")[0].partition("+")[0].lower() if ":" in self.uri else ""

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return redact(self.uri)

    @property
    def artifacts(self) -> Path | None:
        """Folder for the artifacts of a new experiment; None: the server knows."""
        return self.folder / ARTIFACTS if self.kind in DATABASES else None

    def error(self, problem: str, remedy: str = "") -> TrackingError:
        """An error that names the setting, what was found there and what to change."""
        where = f"{self.source}: {self.shown}" if self.source else self.shown
        remedy = remedy or "set another tracking.uri, or tracking.enabled: false"
        return TrackingError(f"{where}: {problem}; {remedy}")


def find_store(settings: TrackingSettings, folder: Path) -> Store:
    """The store that the settings ask for.

    Args:
        settings: section ``tracking`` of the experiment.
        folder: holds the default SQLite file and its artifacts.

    Raises:
        TrackingError: the URI is malformed.
    """
    folder = folder.absolute()
    if settings.uri:
        store = Store(settings.uri, "tracking.uri", folder)
    elif uri := os.environ.get("MLFLOW_TRACKING_URI", ""):
        store = Store(uri, "MLFLOW_TRACKING_URI", folder)
    else:
        return _default_store(folder)
    _check_uri(store)
    return store


def _default_store(folder: Path) -> Store:
    store = Store(f"sqlite:///{folder / FILE_NAME}", "", folder)
    if any(char in str(folder) for char in "%?"):
        raise store.error(
            "an SQLite URI cannot hold a path with '%' or '?'",
            "move the folder, or set tracking.uri",
        )
    return store


def _check_uri(store: Store) -> None:
    """Refuse what requests or MLflow would refuse with a text that holds parts of the password."""
    if store.kind in SERVERS:
        _check_address(store)
    if store.kind in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "") != "true":
        raise store.error(
            "MLflow no longer records runs in plain folders",
            "give an SQLite file (sqlite:////absolute/path/mlflow.db) or a server (http://…)",
        )


def _check_address(store: Store) -> None:
    encode = "percent-encode special characters in user name and password"
    try:
        parts = urlsplit(store.uri)
        complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise store.error("is not the address of a server", f"give http://host:port ({encode})")
    if "@" in parts.path + parts.query + parts.fragment:
        # What looks like "host:12/path@name" may be a user and a password: it is not shown.
        raise TrackingError(f"{store.source}: holds an '@' behind the host; {encode}")


def view_command(store: Store) -> str:
    """What shows the store: a shell command, or the address of its server.

    The two variables keep MLflow's page from calling home and its job runners from starting.
    """
    if store.kind not in DATABASES and store.kind not in ("", "file"):
        return store.shown
    quiet = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    program = "mlflow"
    if shutil.which(program) is None:  # octnas was called by its path in a virtual environment
        program = str(Path(sys.executable).with_name(program))
    options = ["--backend-store-uri", store.shown, "--port", str(PORT), "--workers", "1"]
    return f"{quiet} {shlex.join([program, 'ui', *options])}"
