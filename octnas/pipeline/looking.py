"""Looking at a run directory that another process may be writing to."""

from collections.abc import Sequence
from pathlib import Path

from octnas.errors import RunDirectoryError
from octnas.pipeline.opening import Run, check_stages, read_experiment
from octnas.pipeline.place import check_name
from octnas.progress import Quiet
from octnas.run_directory import RunDirectory
from octnas.tracking.tracker import Tracker


def look_at_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """A run directory that another process may be writing to; nothing of it is written.

    Args:
        path: the run directory.
        overrides: of settings that decide no result.

    Raises:
        RunDirectoryError: it is none, was made with other settings than the overrides, or its name
            is not UTF-8.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    check_name(path)
    document, config = read_experiment(path, overrides)
    directory = RunDirectory(path)
    if overrides:
        # By itself a run fits its settings, whatever version of octnas has made it.
        check_stages(directory, config)
    tracker = Tracker(config.tracking, experiment=config.name, directory=path)
    return Run(document, config, directory, tracker, Quiet())
