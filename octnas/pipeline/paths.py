"""The paths of an experiment, such that they mean the same from any folder."""

from dataclasses import replace
from pathlib import Path

from octnas.config import RunConfig
from octnas.data.prepare import cache_folder
from octnas.data.settings import ImagesSettings
from octnas.settings import PRETRAINED


def absolute(path: str) -> str:
    """A path that means the same from any folder; none stays none."""
    return str(Path(path).expanduser().absolute()) if path else ""


def resolved_paths(config: RunConfig) -> RunConfig:
    """Paths that mean the same from any folder."""
    truth_from, table = absolute(config.ranking.truth_from), absolute(config.latency.table)
    weights = config.supernet.weights
    config = replace(
        config,
        ranking=replace(config.ranking, truth_from=truth_from),
        latency=replace(config.latency, table=table),
        supernet=replace(
            config.supernet, weights=weights if weights == PRETRAINED else absolute(weights)
        ),
    )
    data = config.data
    if not isinstance(data, ImagesSettings):
        return config
    root = absolute(data.root)
    kind, _, path = data.name.partition("/")
    # A name on a hub stays as it is.
    name = f"{kind}/{Path(path).absolute()}" if path and Path(path).is_dir() else data.name
    # Ray's workers have another home.
    cache = replace(data.cache, folder=str(cache_folder(data)))
    return replace(config, data=replace(data, root=root, name=name, cache=cache))
