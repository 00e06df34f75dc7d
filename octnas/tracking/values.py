"""Values in the form that MLflow accepts."""

import json
import re
from collections.abc import Mapping

from octnas.credentials import redact

# mlflow.utils.validation in 3.17.
LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
LONGEST_NAME = 250  # the database's column

_REFUSED = re.compile(r"[^\w./\- ]")


def flat_params(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters by dotted key, as texts; without passwords and cut where too long."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            nested = {f"{key}.{name}": item for name, item in value.items()}
            flat.update(flat_params(nested))
        else:
            flat[clean_key(key)] = cut(redact(_text(value)), LONGEST_PARAM)
    return flat


def flat_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without passwords, cut where too long."""
    return {clean_key(key): cut(redact(str(tags[key])), LONGEST_TAG) for key in tags}


def clean_key(key: str) -> str:
    """A name that MLflow accepts: what it refuses becomes ``_``, and the end of a long one goes."""
    key = _REFUSED.sub("_", key)
    return key if len(key) <= LONGEST_KEY else key[: LONGEST_KEY - 3] + "..."


def cut(text: str, longest: int) -> str:
    """``text`` with at most ``longest`` characters; an ellipsis marks a cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _text(value: object) -> str:
    """As Python writes it, but lists and the like as JSON."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
