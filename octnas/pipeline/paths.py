"""Paths of an experiment that mean the same from any folder and on Ray's workers."""

from dataclasses import replace
from pathlib import Path

from octnas.config import RunConfig
from octnas.data.prepare import cache_folder
from octnas.data.settings import ImagesSettings
from octnas.files import expand_home
from octnas.settings import PRETRAINED


def absolute(path: str, key: str) -> str:
    """The path of a setting, meaning the same from any folder; none stays none.

    Raises:
        ConfigError: in the home of a user who has none.
    """
    return str(expand_home(path, key).absolute()) if path else ""


def resolved_paths(config: RunConfig) -> RunConfig:
    """Paths that mean the same from any folder.

    Raises:
        ConfigError: in the home of a user who has none.
    """
    truth_from = absolute(config.ranking.truth_from, "ranking.truth_from")
    table = absolute(config.latency.table, "latency.table")
    weights = config.supernet.weights
    config = replace(
        config,
        ranking=replace(config.ranking, truth_from=truth_from),
        latency=replace(config.latency, table=table),
        supernet=replace(
            config.supernet,
            weights=weights if weights == PRETRAINED else absolute(weights, "supernet.weights"),
        ),
    )
    data = config.data
    if not isinstance(data, ImagesSettings):
        return config
    root = absolute(data.root, "data.root")
    kind, _, path = data.name.partition("/")
    # A name on a hub stays as it is.
    name = f"{kind}/{Path(path).absolute()}" if path and Path(path).is_dir() else data.name
    cache = data.cache
    if cache.enabled:
        # Ray's workers have another home.
        cache = replace(cache, folder=str(cache_folder(data)))
    return replace(config, data=replace(data, root=root, name=name, cache=cache))
