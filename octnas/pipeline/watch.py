"""The report of a run that another process goes on with."""

from collections.abc import Sequence
from pathlib import Path

from octnas.pipeline.looking import look_at_run
from octnas.pipeline.place import CONFIG_FILE
from octnas.pipeline.report import write_for_now
from octnas.report.write import PAGE_FILE
from octnas.run_directory import check_links


def write_if_ready(
    path: Path, overrides: Sequence[str], tables: Sequence[Path], seconds: int
) -> tuple[str, bool]:
    """Write the page of what there is; what may be said of it, and whether the run is finished.

    Args:
        path: the run directory, which may not be there yet.
        overrides: of settings that decide no result.
        tables: of layer times of other devices.
        seconds: after which the page asks for itself again.

    Raises:
        RunDirectoryError: a link leads out of it; or as `look_at_run`.
    """
    if not (path / CONFIG_FILE).exists():
        return f"{path}: waiting for the run to begin", False
    check_links(path)
    run = look_at_run(path, overrides)
    if run.directory.finished("space") is None:
        return f"{path}: waiting for its search space", False
    finished = write_for_now(run, tables=tables, seconds=seconds)
    page = run.directory.stage("report") / PAGE_FILE
    if finished:
        return f"{page}: the run is finished", True
    return f"{page}: written every {seconds} s while the run goes on", False
