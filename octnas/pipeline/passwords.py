"""Passwords in URLs: a run directory leaves them out, the environment gives them again."""

import os
from dataclasses import replace

from octnas.config import RunConfig
from octnas.credentials import HIDDEN
from octnas.errors import ConfigError

STORAGE_VARIABLE = "OCTNAS_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def with_passwords(config: RunConfig) -> RunConfig:
    """The URLs of study and tracking, from the environment where it gives them.

    Raises:
        ConfigError: a password was left out, and the environment does not give it.
    """
    url = config.search.storage or os.environ.get(STORAGE_VARIABLE, "")
    storage = _whole("search.storage", url, STORAGE_VARIABLE)
    uri = _whole("tracking.uri", config.tracking.uri, TRACKING_VARIABLE)
    return replace(
        config,
        search=replace(config.search, storage=storage),
        tracking=replace(config.tracking, uri=uri),
    )


def _whole(key: str, url: str, variable: str) -> str:
    """A URL with its password, which a run directory leaves out.

    Raises:
        ConfigError: it was left out, and the environment does not give it.
    """
    if HIDDEN not in url:
        return url
    if not os.environ.get(variable):
        raise ConfigError(
            f"{key}: found {url!r}, whose password was left out of the run directory; "
            f"set the whole URL in the environment variable {variable}"
        )
    return os.environ[variable]
