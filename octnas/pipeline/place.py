"""Whether a folder is the directory of a run, or may become one."""

import os
from pathlib import Path

from octnas.documents import writable
from octnas.errors import RunDirectoryError
from octnas.files import DRAFT
from octnas.lease import FOLDER, was_held
from octnas.run_directory import read_document, reading

SCHEMA = 1
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
# What a file system has at its root is nobody's.
_NOBODYS = ("lost+found",)


def check_name(path: Path) -> None:
    """Refuse a path that no page, record or batch file could hold, before anything is written.

    Args:
        path: of a file or folder, which need not be there yet.

    Raises:
        RunDirectoryError: it is not UTF-8, or what a link there leads to is not.
    """
    # Unlike `Path.resolve`, it takes no offence at links in a circle.
    for name in (str(path), os.path.realpath(path)):
        if not writable(name):
            raise RunDirectoryError(f"{name!r}: is not UTF-8, so no file could hold it; rename it")


def check_place(path: Path) -> None:
    """Refuse a folder of others' files, before anything in it is removed or written over.

    Args:
        path: of the run directory, which need not be there yet.

    Raises:
        RunDirectoryError: it holds something, and no run; the record of runs there is spoilt; or
            as `check_name`.
        OSError: it cannot be looked at.
    """
    check_name(path)
    try:
        names = {entry.name for entry in path.iterdir()}.difference(_NOBODYS)
    except (FileNotFoundError, NotADirectoryError):
        # Whoever makes it says what is wrong with its path.
        return
    if RUN_FILE in names:
        with reading(path / RUN_FILE):
            read_document(path / RUN_FILE, SCHEMA, "runs")
        return
    # The first that is made there is the lease, or a draft of the record where there is none.
    if was_held(path) or all(_begun(path / name) for name in names):
        return
    raise RunDirectoryError(
        f"{path}: is not a run directory, and holds other files; give a new folder or an empty one"
    )


def _begun(entry: Path) -> bool:
    """Whether a process that was killed at the very beginning may have left it."""
    if entry.name == FOLDER and entry.is_dir():
        return all(inner.name.startswith(".") for inner in entry.iterdir())
    return entry.name.startswith(f".{RUN_FILE}{DRAFT}")
