"""The stages of a run, in order, each skipped where it is finished."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from octnas.errors import RunDirectoryError
from octnas.export.formats import check_installed
from octnas.pipeline.convert import convert
from octnas.pipeline.export import export
from octnas.pipeline.fingerprints import all_bases, bases, with_first
from octnas.pipeline.original import original
from octnas.pipeline.ranking import rank, truth
from octnas.pipeline.report import report, write_so_far
from octnas.pipeline.retrain import check_pruning, retrain
from octnas.pipeline.run import Run, locked
from octnas.pipeline.search import search
from octnas.pipeline.space import make_space, prepare_data
from octnas.pipeline.supernet import supernet
from octnas.runtime.directory import CONVERT, ORIGINAL, WHOLE_RUN, RunDirectory

STOP_WAIT = 1.0  # seconds that a signal leaves for MLflow

_WORK: Mapping[str, Callable[[Run], None]] = {
    "data": prepare_data,
    "space": make_space,
    ORIGINAL: original,
    CONVERT: convert,
    "supernet": supernet,
    "truth": truth,
    "rank": rank,
    "search": search,
    "retrain": retrain,
    "export": export,
    "report": report,
}


def run_stages(run: Run, stages: Sequence[str] = WHOLE_RUN) -> None:
    """Run stages in order; those that are finished with the same settings are skipped.

    Raises:
        RunDirectoryError: a stage builds on one that is not finished.
        ConfigError: a setting that turns out to be wrong or needs a package that is not installed,
            with its file and line.
        ExportError: a requested format needs a package that is not installed.
    """
    if "export" in stages:
        # Before the hours of the earlier stages.
        check_installed(run.config.export)
    if "retrain" in stages:
        check_pruning(run)
    stages = with_first(run.config, stages)
    for stage in stages:
        if (shared := run.directory_of(stage)) is not run.directory:
            _check_shared(run, shared, stage)
    with _tracked(run):
        for stage in stages:
            done = _run_stage(run, stage)
            if done and stage == "search" and "report" in stages:
                # Now, since training takes much longer than the search.
                run.progress.say(f"  report so far: {write_so_far(run)[1]}")


def rewrite_report(run: Run, *, tables: Sequence[Path] = (), png: bool = False) -> None:
    """Write the report again, of a finished or unfinished run; see `octnas.pipeline.report.report`.

    Raises:
        RunDirectoryError: there is no search space yet.
    """
    if run.directory.finished("space") is None:
        raise RunDirectoryError(
            f"{run.directory.path}: the report builds on space, which is not finished; "
            "run `octnas supernet` first, or `octnas run` for everything"
        )
    with _tracked(run):
        report(run, tables=tables, png=png)
    if run.directory.finished("retrain") is not None:
        run.directory.finish("report", run.fingerprint("report"))


def _run_stage(run: Run, stage: str) -> bool:
    """Whether anything was done."""
    directory = run.directory_of(stage)
    if directory is run.directory:
        directory.check(stage, run.fingerprint(stage))
    finished = directory.finished(stage)
    if finished is not None:
        run.progress.say(f"{stage}: skipped, finished {finished} with the same settings")
        return False
    if directory is run.directory:
        _do_stage(run, stage)
        return True
    run.progress.say(f"{stage}: goes to {directory.path}, where it is not finished yet")
    with locked(directory.path, run.progress.say):
        _do_stage(run, stage)
    return True


def _do_stage(run: Run, stage: str) -> None:
    for base in bases(run.config, stage):
        if run.directory_of(base).finished(base) is None:
            raise RunDirectoryError(
                f"{run.directory.path}: {stage} builds on {base}, which is not finished; "
                f"run `octnas {base}` first, or `octnas run` for everything"
            )
    _WORK[stage](run)
    run.directory_of(stage).finish(stage, run.fingerprint(stage))


def _check_shared(run: Run, directory: RunDirectory, stage: str) -> None:
    """Refuse another run's results if they or their data were made with other settings."""
    # A digest alone would not say which setting of an earlier stage it is.
    for one in (*all_bases(run.config, stage), stage):
        if what := directory.changes(one, run.fingerprint(one)):
            raise RunDirectoryError(
                f"ranking.truth_from: {directory.path}: its {one} was made with other settings "
                f"({what}); use the same ones, or set ranking.truth_from to nothing"
            )


@contextmanager
def _tracked(run: Run) -> Iterator[None]:
    """Leave no MLflow run open, however the work ends."""
    try:
        yield
    except KeyboardInterrupt:
        # A user who stops the run should not wait; records that are not sent yet are kept.
        run.tracker.close(failed=True, seconds=STOP_WAIT)
        raise
    except BaseException:
        run.tracker.close(failed=True)
        raise
    run.tracker.close()
