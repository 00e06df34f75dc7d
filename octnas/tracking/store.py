"""Which MLflow store is meant, and how to look at it.

MLflow's exceptions as one line without passwords.

What MLflow is told by environment variables, before it is imported.
"""

import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
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


LONGEST = 300
SHORTEST_SECRET = 4

_log = logging.getLogger(__name__)

_SYSTEM = ("builtins", "socket", "ssl", "http.client")

# Of MLflow's error codes those that are about what was sent: again it would be refused again.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
# What somebody has to change before it is of use to try again.
_LOCKED_OUT = ("CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED")
_SETTINGS = (*_REFUSALS, *_LOCKED_OUT, "BAD_REQUEST")
# The same of HTTP, where what answers is no MLflow but an artifact store or a proxy before it: all
# that blames the request (413, say, for a file that is too large), but for who sends it and when.
_CLIENT_ERRORS = range(400, 500)
_UNAUTHORIZED, _LATER = (401, 403, 407), (408, 425, 429)
# What a database says that is there, but refuses.
_NOT_AWAY = ("authentication failed", "access denied", "does not exist", "unknown database")


class AwayError(TrackingError):
    """A store that does not answer, or not now: the same may succeed later."""


class RefusedError(TrackingError):
    """A record that cannot be sent, whatever one waits for."""


@contextmanager
def tracking_errors(store: Store, problem: str = "MLflow") -> Iterator[None]:
    """Turn whatever MLflow raises inside into a `TrackingError` that begins with ``problem``.

    MLflow raises exceptions of its own, of requests, SQLAlchemy, Alembic and database drivers.
    Their texts may hold the tracking URI, so they are not chained; with debug logging, the
    redacted traceback is written.

    Raises:
        AwayError: the store may take the same later.
        TrackingError: everything else.
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
    """Whether the store is there, and refuses what it was sent."""
    if isinstance(error, RefusedError) or getattr(error, "error_code", "") in _REFUSALS:
        return True
    return _status(error) in _CLIENT_ERRORS and _status(error) not in (*_UNAUTHORIZED, *_LATER)


def _status(error: BaseException) -> int:
    """Of an HTTP answer that ``requests`` has turned into an exception; 0 of everything else."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _is_away(error: BaseException) -> bool:
    code, name = getattr(error, "error_code", ""), type(error).__name__
    if code:
        return code not in _SETTINGS
    if status := _status(error):
        return status not in _CLIENT_ERRORS or status in _LATER
    text = str(error).lower()
    if "sqlite" in f"{type(error).__module__} {text}":
        return "locked" in text or "busy" in text
    if name in ("OperationalError", "TimeoutError", "InterfaceError"):  # SQLAlchemy's and drivers'
        return not any(words in text for words in _NOT_AWAY)
    return isinstance(error, ConnectionError | TimeoutError)


def reason(error: BaseException, store: Store) -> str:
    """Why something failed, in one line: the operating system's word if it was the cause."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and type(cause).__module__ in _SYSTEM:
            text = cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    lines = hide(text, store).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= LONGEST else lines[0][: LONGEST - 1] + "…"


def hide(text: str, store: Store) -> str:
    """``text`` without passwords; the store's own is also found outside of a URL."""
    text = redact(text)
    for secret in _secrets(store.uri):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(uri: str) -> list[str]:
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    password = userinfo.partition(":")[2]
    found = {password, unquote(password)}
    # Shorter ones would blank out parts of innocent words.
    return sorted((text for text in found if len(text) >= SHORTEST_SECRET), key=len, reverse=True)


FORCED: Mapping[str, str] = MappingProxyType(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # At the end of a run MLflow prints the server's URL, password included.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # MLflow's 7 retries, 120 s each, are minutes for one call to a dead server. And a request
        # that a slow server carries out after its time was over would be carried out twice: the
        # sender tries again itself, after a look at what is there.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
)

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds without any byte, not for a whole upload
        "PGCONNECT_TIMEOUT": "10",  # PostgreSQL's client waits for minutes otherwise
        # Creating a database says several lines at INFO.
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_AGENT_HINT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
)


def import_mlflow() -> ModuleType:
    """Import MLflow with telemetry off, short waits and no chatter; takes seconds at first.

    What the user has set stays, except for telemetry and retries.
    """
    os.environ.update(FORCED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.telemetry import set_telemetry_client

    # It may have been imported before without these variables; then its client is there already.
    set_telemetry_client()
    return mlflow
