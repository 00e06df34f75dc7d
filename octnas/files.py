"""Files that are whole or absent, also if a process dies while it writes them."""

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from octnas.errors import ConfigError

LARGEST = 256 * 2**20
"""Bytes of a document that is read whole; what octnas writes has a few at most."""

DRAFT = ".draft-"
"""In the name of what is being written: ``.NAME.draft-…``, a file or a folder."""

_STALE = 3600.0  # seconds; no file takes as long


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, also if the process dies in the middle.

    Raises:
        OSError: it cannot be written, or is a folder, a pipe or a device, which would be replaced;
            with its name, so that it can be said in one line.
    """
    # Where a link leads nowhere, or nothing can be seen, writing says what is wrong.
    mode = None
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
    if mode is not None:
        _check_regular(path, mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{DRAFT}")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is private to its owner; results are as readable as others.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_regular(path: Path, most: int = LARGEST) -> bytes:
    """Read a document that anybody may have named, as `open_regular`.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: as `open_regular`; or it is larger.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most / 2**20:g} MiB", str(path))
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, but no pipe and no device, which might never end.

    Raises:
        OSError: it cannot be opened or is no regular file, nor a link to one; with its name.
    """
    # Opening a pipe would else wait for whoever writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file, which is needed here", str(path))


def remove_drafts(path: Path, *, stale: bool = False) -> None:
    """Remove what processes that were killed while they wrote a file have left beside it.

    Args:
        path: of the file.
        stale: of old drafts only, where others may be writing the file now.
    """
    for draft in path.parent.glob(f".{glob.escape(path.name)}{DRAFT}*"):
        if not stale or _is_stale(draft):
            draft.unlink(missing_ok=True)


def _is_stale(draft: Path) -> bool:
    """Whether nobody can still be writing a draft."""
    try:
        return time.time() - draft.lstat().st_mtime > _STALE
    except OSError:  # it has just become the file
        return False


def remove_all_drafts(folder: Path, *others: str) -> None:
    """Remove what processes that were killed have left of what they were writing below.

    For who alone writes there now.

    Args:
        folder: of a run or a part of one.
        others: names of files that others may be writing at the moment, of which old drafts go.
    """

    def left(path: Path) -> bool:
        written, draft, _ = path.name[1:].partition(DRAFT)
        ours = path.name.startswith(".") and bool(draft)
        return ours and (written not in others or _is_stale(path))

    # Unlike `Path.rglob`, it takes no offence at folders that are removed meanwhile.
    for place, folders, files in os.walk(folder):
        for path in filter(left, map(Path(place).joinpath, files)):
            path.unlink(missing_ok=True)
        for path in filter(left, map(Path(place).joinpath, folders)):
            remove_tree(path)


def remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that is in it, as `shutil.rmtree`, which refuses links.

    Args:
        path: of the folder; of a link, the link alone goes, and what it leads to stays.
        ignore_errors: leave what cannot be removed, also if nothing is there.
    """
    if path.is_symlink():
        with contextlib.suppress(*([OSError] if ignore_errors else [])):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it is on disk when this returns.

    Raises:
        OSError: it cannot be written; with its name.
    """
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system inside have the file's name, which writing leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def expand_home(path: str, key: str) -> Path:
    """A path whose ``~`` is replaced by the user's home.

    Args:
        path: any path.
        key: of the setting that it is the value of.

    Raises:
        ConfigError: it begins with ``~``, and there is no such home, as in a container whose user
            has a number alone.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        who = "this user" if path.partition("/")[0] == "~" else "that user"
        raise ConfigError(
            f"{key}: found {path!r}, {who} has no home directory; give an absolute path"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document whole or not at all."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
