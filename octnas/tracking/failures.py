"""MLflow's exceptions as one line without passwords."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from octnas.credentials import HIDDEN, redact
from octnas.errors import TrackingError
from octnas.tracking.stores import Store

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
