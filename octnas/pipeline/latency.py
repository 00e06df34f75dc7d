"""Latency tables of an experiment's search space, and the latency of what a search has chosen."""

import re
from pathlib import Path

from octnas.config import RunConfig, check_config, load_document
from octnas.data.digits import CLASSES
from octnas.data.settings import DigitsSettings
from octnas.errors import LatencyError
from octnas.latency import LatencyTable
from octnas.measure.latency import Log, machine_name, measure_table
from octnas.measure.settings import LatencySettings
from octnas.pipeline.space import space_of
from octnas.run_directory import read_json, write_json
from octnas.space import SearchSpace

# Where the data is not looked at; the classifier is no part of a table.
_CLASSES = 1000
KEPT_SUFFIX = ".measured.jsonl"


def experiment_space(experiment: Path, overrides: tuple[str, ...] = ()) -> SearchSpace:
    """The search space of an experiment file, without a look at its data.

    Raises:
        ConfigError: a mistake in the file.
    """
    config: RunConfig = check_config(load_document(experiment, overrides))
    digits = isinstance(config.data, DigitsSettings)
    return space_of(config, len(CLASSES) if digits else _CLASSES)


def default_file(settings: LatencySettings) -> Path:
    """Where a table goes unless the user says."""
    machine = settings.name or machine_name(settings.device)
    text = f"{machine}-{settings.backend}-{settings.precision}-{settings.batch}"
    return Path("latency") / f"{re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-')}.json"


def make_table(
    space: SearchSpace, settings: LatencySettings, out: Path, log: Log = lambda _: None
) -> LatencyTable:
    """Measure a latency table and write it; see `octnas.measure.latency.measure_table`.

    What is measured is kept beside the file, so that the same command goes on where it was broken
    off.
    """
    table = measure_table(space, settings, out.with_name(out.name + KEPT_SUFFIX), log)
    write_json(out, table.to_dict())
    return table


def read_table(path: Path) -> LatencyTable:
    """Read what `make_table` wrote.

    Raises:
        LatencyError: it is missing or something else; the file is named.
    """
    if not path.is_file():
        raise LatencyError(f"{path}: no such file; write it with `octnas latency`")
    try:
        return LatencyTable.from_dict(read_json(path))
    except LatencyError as error:
        raise LatencyError(f"{path}: {error}") from None
