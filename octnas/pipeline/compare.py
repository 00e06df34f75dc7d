"""Several finished runs, or what there is of them, beside each other."""

from collections.abc import Sequence
from pathlib import Path

from octnas.errors import RunDirectoryError
from octnas.pipeline.looking import look_at_run
from octnas.pipeline.place import check_name
from octnas.pipeline.report import gather
from octnas.report.runs import ComparedRun, differing, flat
from octnas.report.runs_page import rank_rows, write_runs_page


def compare_runs(
    paths: Sequence[Path], out: Path
) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """Write the page; the rows of its first table, and the settings that differ.

    Args:
        paths: run directories, two or more.
        out: the page.

    Raises:
        RunDirectoryError: fewer than two, the same one twice, or one that has no search space yet;
            or the page would be among a run's own files, or its path is not UTF-8.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunDirectoryError("octnas compare: give two or more different run directories")
    check_name(out)
    if inside := [path for path in paths if out.resolve().is_relative_to(path.resolve())]:
        raise RunDirectoryError(
            f"{out}: lies in {inside[0]}, which is compared; give another --out"
        )
    runs = [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]
    write_runs_page(runs, out)
    return rank_rows(runs), differing(runs)


def _read(path: Path, label: str) -> ComparedRun:
    run = look_at_run(path)
    if run.directory.finished("space") is None:
        raise RunDirectoryError(f"{path}: has no search space yet, so there is nothing to compare")
    # The file leaves passwords out.
    settings = flat(run.document.values)
    return ComparedRun(label, gather(run), settings)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; whole paths where names are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
