"""Which MLflow store to use, its errors without passwords, and how to import MLflow quietly."""

import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from octnas.errors import TrackingError
from octnas.io.credentials import HIDDEN, redact
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
        folder: holds the artifacts of new experiments unless a server decides.
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
        """Folder for the artifacts of a new experiment; None if the server decides."""
        return self.folder / ARTIFACTS if self.kind in DATABASES else None

    def error(self, problem: str, remedy: str = "") -> TrackingError:
        """An error that names the setting, its value, the problem and what to change."""
        where = f"{self.source}: {self.shown}" if self.source else self.shown
        remedy = remedy or "set another tracking.uri, or tracking.enabled: false"
        return TrackingError(f"{where}: {problem}; {remedy}")


def find_store(settings: TrackingSettings, folder: Path) -> Store:
    """The store that the settings ask for; ``folder`` is that of the default SQLite file.

    Raises:
        TrackingError: the URI is malformed.
    """
    folder = folder.absolute()
    if settings.uri:
        store = Store(settings.uri, "tracking.uri", folder)
    elif uri := os.environ.get("MLFLOW_TRACKING_URI", ""):
        store = Store(uri, "MLFLOW_TRACKING_URI", folder)
    else:
        store = Store(f"sqlite:///{folder / FILE_NAME}", "", folder)
        if any(char in str(folder) for char in "%?"):
            raise store.error(
                "an SQLite URI cannot hold a path with '%' or '?'",
                "rename the folder, or set tracking.uri",
            )
    if store.kind in SERVERS:
        _check_address(store)
    if store.kind in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "") != "true":
        raise store.error(
            "MLflow no longer records runs in plain folders",
            "give an SQLite file (sqlite:////absolute/path/mlflow.db) or a server (http://…)",
        )
    return store


def _check_address(store: Store) -> None:
    """Refuse URIs of which an error of requests or MLflow would quote parts of the password."""
    encode = "percent-encode special characters in user name and password"
    try:
        parts = urlsplit(store.uri)
        complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise store.error("not the address of a server", f"give http://host:port ({encode})")
    if "@" in parts.path + parts.query + parts.fragment:
        # "host:12/path@name" may be a user and a password: it is not shown.
        raise TrackingError(f"{store.source}: '@' after the host; {encode}")


def view_command(store: Store) -> str:
    """How to view the store: a shell command, or the address of its server."""
    if store.kind not in DATABASES and store.kind not in ("", "file"):
        return store.shown
    # Neither phone home nor start job runners.
    quiet = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    program = "mlflow"
    if shutil.which(program) is None:  # octnas was called by its path in a virtual environment
        program = str(Path(sys.executable).with_name(program))
    options = ["--backend-store-uri", store.shown, "--port", str(PORT), "--workers", "1"]
    return f"{quiet} {shlex.join([program, 'ui', *options])}"


_LONGEST = 300
_SHORTEST_SECRET = 4  # shorter ones would blank out parts of innocent words

_log = logging.getLogger(__name__)

# MLflow's error codes about what was sent: sending it again is of no use.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
# Those that the user has to do something about, and then everything can be sent.
_LOCKED_OUT = ("CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED")
_SETTINGS = (*_REFUSALS, *_LOCKED_OUT, "BAD_REQUEST")
# The same for HTTP, where an artifact store or a proxy answers: all that blames the request, such
# as 413 for too large a file, except for access rights and bad timing.
_CLIENT_ERRORS = range(400, 500)
_UNAUTHORIZED, _LATER = (401, 403, 407), (408, 425, 429)
# Parts of messages of a database that is reachable, but refuses access.
_REACHABLE = ("authentication failed", "access denied", "does not exist", "unknown database")


class AwayError(TrackingError):
    """A store that is unreachable or busy: the same may succeed later."""


class RefusedError(TrackingError):
    """A record that can never be sent."""


@contextmanager
def tracking_errors(store: Store, problem: str = "MLflow") -> Iterator[None]:
    """Turn whatever MLflow raises inside into a `TrackingError` that begins with ``problem``.

    MLflow raises exceptions of its own, of requests, SQLAlchemy, Alembic and database drivers.
    Their messages may contain the tracking URI, so they are not chained; with debug logging, the
    redacted traceback is logged.

    Raises:
        AwayError: the same may succeed later.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # noqa: BLE001  see above
        _log.debug("%s", hide(traceback.format_exc(), store))
        found = store.error(f"{problem}: {reason(error, store)}")
        raise (AwayError(str(found)) if _is_away(error) else found) from None


def is_refusal(error: BaseException) -> bool:
    """Whether the store is reachable and refuses what it was sent."""
    if isinstance(error, RefusedError) or getattr(error, "error_code", "") in _REFUSALS:
        return True
    return _status(error) in _CLIENT_ERRORS and _status(error) not in (*_UNAUTHORIZED, *_LATER)


def _status(error: BaseException) -> int:
    """The HTTP status of an exception of requests; 0 for any other."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _is_away(error: BaseException) -> bool:
    if code := getattr(error, "error_code", ""):
        return code not in _SETTINGS
    if status := _status(error):
        return status not in _CLIENT_ERRORS or status in _LATER
    text = str(error).lower()
    if "sqlite" in f"{type(error).__module__} {text}":
        return "locked" in text or "busy" in text
    # SQLAlchemy's and the drivers'.
    if type(error).__name__ in ("OperationalError", "TimeoutError", "InterfaceError"):
        return not any(words in text for words in _REACHABLE)
    return isinstance(error, ConnectionError | TimeoutError)


def reason(error: BaseException, store: Store) -> str:
    """Why something failed, in one line; the operating system's reason if there is one."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        own = type(cause).__module__ in ("builtins", "socket", "ssl", "http.client")
        if isinstance(cause, OSError) and own:
            text = cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    lines = hide(text, store).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _LONGEST else lines[0][: _LONGEST - 1] + "…"


def hide(text: str, store: Store) -> str:
    """``text`` without passwords; the store's own is also found outside of URLs."""
    text = redact(text)
    password = store.uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for secret in (password, unquote(password)):  # encoded, it is the longer one
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return text


FORCED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # At the end of a run MLflow prints the server's URL, password included.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The default, 7 retries of 120 s, takes minutes for one call to a dead server. And a slow
    # server would carry out both a timed-out request and its retry: the sender retries itself, and
    # checks first what is there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds without any byte, not for a whole upload
    "PGCONNECT_TIMEOUT": "10",  # PostgreSQL's client waits for minutes otherwise
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # creating a database logs several lines at INFO
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def import_mlflow() -> ModuleType:
    """Import MLflow without telemetry, long waits and log output; takes seconds the first time.

    Environment variables that the user has set stay, except for telemetry and retries.
    """
    os.environ.update(FORCED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.telemetry import set_telemetry_client

    # Stops the client of an MLflow that was imported before without these variables.
    set_telemetry_client()
    return mlflow
