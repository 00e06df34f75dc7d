"""A run that no other process works on meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octnas.files import remove_all_drafts
from octnas.lease import held
from octnas.pipeline.opening import (
    Run,
    check_fresh,
    default_directory,
    open_run,
    read_experiment,
)
from octnas.pipeline.place import check_place
from octnas.progress import Progress
from octnas.report.write import PAGE_FILE
from octnas.run_directory import WHOLE_RUN, RunDirectory, check_links
from octnas.shipped import default_experiment
from octnas.tracking.progress import FILE as SENT_FILE


def where(experiment: Path | None, overrides: Sequence[str], run_dir: Path | None) -> Path:
    """The run directory that is meant; the experiment is not looked at where one is given.

    Args:
        experiment: by default the shipped digits.
        overrides: ``section.key=value``.
        run_dir: in the place of the experiment's own.

    Raises:
        ConfigError: a mistake in the experiment file.
    """
    if run_dir is not None:
        return run_dir
    experiment = experiment or default_experiment()
    return default_directory(experiment, read_experiment(experiment, overrides)[1])


@contextmanager
def owned(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that works on a run directory, rid of what killed ones were writing.

    Args:
        directory: its path; see `held`.
        say: as of `held`.

    Raises:
        RunDirectoryError: as `held`; it is a folder of other files, or a link leads out of it.
    """
    check_place(directory)
    # Before even the lease, which removes those of earlier owners.
    check_links(directory)
    with held(directory, say):
        RunDirectory(directory).remove_forgotten()
        _remove_drafts(directory)
        yield
        # Of workers that were killed meanwhile.
        _remove_drafts(directory)


def _remove_drafts(directory: Path) -> None:
    # The page may be written by `octnas report --watch`, and records be sent by `octnas sync`.
    remove_all_drafts(directory, PAGE_FILE, SENT_FILE)


@contextmanager
def own_run(
    experiment: Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    fresh: str | None = None,
    stages: Sequence[str] = WHOLE_RUN,
    progress: Progress,
) -> Iterator[Run]:
    """Open a run, see `open_run`, and be the only one who works on it within a ``with`` block.

    Raises:
        RunDirectoryError: as `owned`; or as `open_run`.
        ConfigError: as `open_run`.
    """
    # Before anything is made: a mistake leaves no folder behind.
    check_fresh(fresh, stages)
    config = read_experiment(experiment, overrides)[1]
    with owned(run_dir or default_directory(experiment, config), progress.say):
        yield open_run(
            experiment,
            overrides=overrides,
            run_dir=run_dir,
            fresh=fresh,
            stages=stages,
            progress=progress,
        )
