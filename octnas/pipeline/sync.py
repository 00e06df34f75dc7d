"""Sending the records of a run directory that MLflow does not have yet."""

from collections.abc import Sequence
from pathlib import Path

from octnas.errors import RunDirectoryError
from octnas.pipeline.opening import read_experiment
from octnas.pipeline.place import check_name
from octnas.run_directory import check_links
from octnas.tracking.sync import sync_runs


def sync_run(path: Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Send what is left, with the run directory's own settings.

    Args:
        path: the run directory.
        overrides: ``section.key=value``, such as another ``tracking.uri``.

    Returns:
        Lines that say what was sent.

    Raises:
        RunDirectoryError: it is none, a link leads out of it, or its name is not UTF-8.
        TrackingError: MLflow is away or cannot be used.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    check_name(path)
    _, config = read_experiment(path, overrides)
    check_links(path)
    return sync_runs(config.tracking, config.name, path)
