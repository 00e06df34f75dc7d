"""Keep passwords and tokens out of whatever is written, logged or shown."""

import re
from typing import Any

HIDDEN = "***"

# A space or a double quote ends a URL in running text or JSON. Everything else may be part of a
# password that is not percent-encoded. The scheme's length is bounded so that long texts without a
# URL are read in linear time.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,30})://([^\s\"]+)")

# In the URL of a database a password may contain "/" (SQLAlchemy reads up to the "@"), so
# "user:12/3@host" has no port there.
_DATABASE = re.compile(r"(postgres|mysql|mariadb|mssql|oracle|sqlite|mongodb|redis)", re.IGNORECASE)
_PORT_AND_PATH = re.compile(r"\d{1,5}(/.*)?", re.DOTALL)
_QUERY = re.compile(r"[\w.%\-\[\]]*=")

_SECRETS = (
    r"[\w.\-]*(?:password|passwd|passphrase|pwd|token|secret|credentials?|signature)"
    r"|(?:[\w.\-]*[_\-])?(?:api[_\-]?key|access[_\-]?key|auth|sig)"
    r"|odbc_connect"  # percent-encoded settings, the password among them
)
_PARAMETER = re.compile(rf"([?&;#](?:{_SECRETS})=)[^&\s\"]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Replace every password in ``text`` by ``***``.

    Passwords are found in the user part of URLs (``scheme://user:password@host``) and in query
    parameters such as ``?password=``, ``&sslpassword=`` and ``&token=``. With an unencoded ``@``,
    ``:`` or ``/`` in it, everything up to the URL's last ``@`` counts as password, so that too much
    is hidden rather than too little. User names stay. Redacting is idempotent.
    """
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _URL.sub(_redact_url, text))


def redact_all(value: Any) -> Any:
    """A copy of a JSON value (nested dicts and lists) with `redact` applied to every string."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(key): redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


def _redact_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    end = _user_end(rest, in_database=bool(_DATABASE.search(scheme)))
    user, _, password = rest[: max(end, 0)].partition(":")
    if not password or re.search(r"[/?#\[]", user):  # the "@" belongs to the path or the query
        return match[0]
    return f"{scheme}://{user}:{HIDDEN}{rest[end:]}"


def _user_end(rest: str, *, in_database: bool) -> int:
    """Index of the ``@`` behind the password in a URL without its scheme; -1 if there is none."""
    head = re.split(r"[?#]", rest, maxsplit=1)[0]
    has_query = bool(_QUERY.match(rest[len(head) + 1 :]))
    if _PORT_AND_PATH.fullmatch(head.partition(":")[2]):
        if not in_database:
            return -1
        return (head if has_query else rest).rfind("@")
    # An "@" behind a "?" belongs to the query; unless none follows, or there is no "@" before it:
    # then the "?" is part of the password.
    return (head if has_query and "@" in head else rest).rfind("@")
