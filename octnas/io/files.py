"""Atomic writes, and JSON files read as typed values.

A file is whole or absent, even if the process dies while writing it. What is read is checked
against its type at once, so that a wrong value is reported with its file and key.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from octnas.errors import ConfigError, OctnasError, RunDirectoryError

LARGEST = 256 * 2**20
"""Bytes of a document that is read whole; octnas writes a few MiB at most."""

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
            with its name.
    """
    if path.exists():
        _check_regular(path, path.stat().st_mode)
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


def read_regular(path: Path) -> bytes:
    """Read a document from an untrusted path.

    Raises:
        OSError: as `open_regular`; or it is larger than `LARGEST`.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, f"larger than {LARGEST / 2**20:g} MiB", str(path))
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
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def remove_drafts(path: Path, *, stale: bool = False) -> None:
    """Remove drafts that killed processes have left beside a file.

    With ``stale`` only old ones, where others may be writing the file now.
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
    """Remove drafts that killed processes have left in a folder; requires the run lock.

    Of the files named in ``others``, which other processes may be writing now, only old drafts are
    removed.
    """

    def left(path: Path) -> bool:
        written, draft, _ = path.name[1:].partition(DRAFT)
        ours = path.name.startswith(".") and bool(draft)
        return ours and (written not in others or _is_stale(path))

    # Unlike `Path.rglob`, it tolerates folders that are removed meanwhile.
    for place, folders, files in os.walk(folder):
        for path in filter(left, map(Path(place).joinpath, files)):
            path.unlink(missing_ok=True)
        for path in filter(left, map(Path(place).joinpath, folders)):
            remove_tree(path)


def remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder as `shutil.rmtree` does, or a link to one, whose target stays."""
    if path.is_symlink():
        with contextlib.suppress(*([OSError] if ignore_errors else [])):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it is on disk when this returns."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError raised inside, which writing leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def expand_home(path: str, key: str) -> Path:
    """A path whose ``~`` is replaced by the user's home.

    Raises:
        ConfigError: it begins with ``~``, and there is no such home, as in a container whose user
            has no name; names the setting ``key``.
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


Value = TypeVar("Value")

# Beyond, nothing is counted here; floats and arrays could not hold it.
_LARGEST = 2**63
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def read_json(
    path: Path,
    kind: type[Value] = Any,  # type: ignore[assignment]
    *,
    schema: int | tuple[int, ...] = (),
    key: str = "",
    error: type[OctnasError] = RunDirectoryError,
    remedy: str = "redo its stage with --fresh",
) -> Value:
    """Read a JSON file as a value of a type.

    Args:
        path: of the file.
        kind: see `read_as`; a dataclass with a ``from_dict`` is read by that.
        schema: version that the document must carry as ``schema``, or several; by default it
            need not carry any.
        key: read only this entry of the document; empty for the whole document.
        error: raised if the file is missing, truncated, of another schema version, or holds
            something else.
        remedy: the end of its message, which says what to do.
    """
    try:
        document = parse_json(read_regular(path))
        if allowed := (schema,) if isinstance(schema, int) else schema:
            found = document.get("schema") if isinstance(document, dict) else document
            _check(found in allowed, found, "schema", " or ".join(map(str, allowed)))
        if key and key not in _check(isinstance(document, dict), document, key, "an object"):
            raise TypeError(f"{key}: missing")
        value: Value = _value(kind, document[key] if key else document, key or _name(kind))
    except FileNotFoundError:
        reason = "no such file"
    except json.JSONDecodeError as problem:
        reason = f"truncated, or not JSON ({problem})"
    except OSError as problem:
        reason = f"cannot be read ({problem.strerror})"
    except (OctnasError, TypeError, ValueError) as problem:
        reason = str(problem)
    except (ArithmeticError, AttributeError, LookupError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
    else:
        return value
    raise error(f"{path}: {' '.join(reason.split())[:300]}" + (f"; {remedy}" if remedy else ""))


def parse_json(text: str | bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: it is not JSON, has a duplicate key, is nested too deeply, or holds text that
            UTF-8 or the name of a file cannot hold.
    """
    try:
        document = json.loads(text, object_pairs_hook=_with_distinct_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if (found := next(_unwritable(document), None)) is not None:
        raise ValueError(f"found a NUL or half a surrogate pair in {found[:40]!r}")
    return document


def writable(text: str) -> bool:
    """Whether UTF-8 and the names of files can hold it."""
    return _UNWRITABLE.search(text) is None


def _unwritable(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += (*value, *value.values())
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not writable(value):
            yield value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return found


def read_as(kind: type[Value], document: Any) -> Value:
    """A value of a type from parsed JSON.

    Integers must lie within ±2⁶³; floats may be infinite or NaN. Keys that a dataclass does not
    know are ignored. A dataclass inside another one that has a ``from_dict`` is read by that.

    Args:
        kind: a number, text, `Literal`, optional value, tuple, sequence, mapping, or a dataclass
            whose fields are of these types.
        document: what `dataclasses.asdict` and a round trip through JSON give.

    Raises:
        TypeError: something is of another type or missing; names where.
        ValueError: an integer that is too large, or what the dataclass itself refuses.
    """
    where = _name(kind)
    found: Value = (
        _dataclass(kind, document, where) if is_dataclass(kind) else _value(kind, document, where)
    )
    return found


def _name(kind: Any) -> str:
    return kind.__name__ if is_dataclass(kind) and isinstance(kind, type) else "document"


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind in (bool, int, float, str, type(None)):
        return _plain(kind, value, where)
    if origin is Literal:
        return _check(value in inner, value, where, "one of " + ", ".join(map(repr, inner)))
    if origin in (Union, types.UnionType):
        return _union(inner, value, where)
    if is_dataclass(kind):
        own = getattr(kind, "from_dict", None)
        return own(value) if own else _dataclass(kind, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, Mapping), value, where, "an object")
        return {key: _value(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    assert isinstance(origin, type), kind
    assert issubclass(origin, Sequence), kind
    return _sequence(origin, inner, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return _small(value, where)
    if kind is int:
        _check(number and isinstance(value, int), value, where, "a whole number")
        return _small(value, where)
    name = {bool: "true or false", str: "text", float: "a number"}.get(kind, "null")
    return _check(isinstance(value, kind), value, where, name)


def _small(value: float, where: str) -> float:
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"{where}: a number of {value.bit_length()} bits, allowed: 63")
    return value


def _union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    return _value(kind, value, where)


def _sequence(origin: type, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    _check(isinstance(value, list | tuple), value, where, "a list")
    if origin is tuple and inner[-1] is not Ellipsis:
        _check(len(value) == len(inner), value, where, f"{len(inner)} values")
    else:
        inner = (inner[0],) * len(value)
    pairs = enumerate(zip(inner, value, strict=True))
    found = [_value(kind, one, f"{where}[{index}]") for index, (kind, one) in pairs]
    return tuple(found) if origin is tuple else found


def _dataclass(kind: Any, document: Any, where: str) -> Any:
    _check(isinstance(document, Mapping), document, where, "an object")
    hints = _hints(kind)
    needed = (
        entry.name
        for entry in fields(kind)
        if entry.default is MISSING and entry.default_factory is MISSING
    )
    if missing := [name for name in needed if name not in document]:
        raise TypeError(f"{where}: {', '.join(missing)}: missing")
    known = [key for key in hints if key in document]
    return kind(**{key: _value(hints[key], document[key], f"{where}.{key}") for key in known})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


def _check(fine: bool, value: Any, where: str, allowed: str) -> Any:
    if not fine:
        found = repr(value) if isinstance(value, str | float | int) else type(value).__name__
        raise TypeError(f"{where}: found {found[:40]}, allowed: {allowed}")
    return value
