"""Who works on a run directory: one process at a time, on whatever host.

``owner/N.json`` names the owner. Whoever comes next makes ``N+1``, which only one process can, and
the highest number counts; so that nothing has to be taken away from anybody, and no locks of the
file system are needed. The owner writes a new heartbeat into its file again and again.

Clocks of hosts differ, so no times are compared: an owner is gone if its process is, on this host,
or if a newcomer has seen no heartbeat for as long as a lease lasts. One that was merely held up
for so long (a suspended machine) finds a higher number when it comes back, and ends at once.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from octnas.errors import RunDirectoryError
from octnas.io.files import parse_json, read_as

SCHEMA = 1
FOLDER = "owner"

# Seconds between two heartbeats, and without one until another host may take over.
BEAT, LEASE = 5.0, 60.0
_LOOK = 1.0  # seconds between two looks at an owner of another host
_SIZE = 1024  # bytes: a file is written over in place, so that a reader never meets half of one
_SUFFIX = ".json"
# Other files there, such as a synchronising program's second copies, are nobody's.
_NAME = re.compile(rf"([0-9]+){re.escape(_SUFFIX)}")


@dataclass(frozen=True)
class Owner:
    """A process that works on a run directory, or did.

    Attributes:
        host: its name.
        process: its number.
        begun: when it took the run directory, by its own clock; for people.
        started: what tells it from later processes of the same number; empty where unknown.
        system: what is one boot of a host and one space of process numbers; empty where unknown.
    """

    host: str
    process: int
    begun: str
    started: str
    system: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.begun}"

    @property
    def gone(self) -> bool | None:
        """Whether its process has ended; None if that cannot be known from here."""
        if not self.system or self.system != _system():
            return None
        return _started(self.process) != self.started


@contextlib.contextmanager
def held(path: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Be the one process that works on a run directory, within a ``with`` block.

    Args:
        path: of the run directory; made if it is not there.
        say: for a line about an owner of another host, for whose heartbeat is waited.

    Raises:
        RunDirectoryError: another process works on it.
        OSError: nothing can be written there.
    """
    folder = path / FOLDER
    # In two steps: what is wrong with the place is wrong with the run directory itself.
    path.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    me = _this_process()
    mine = _take(folder, me, say)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(mine, me, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        # On a disk that fails it counts as left without a word.
        with contextlib.suppress(OSError):
            _write(mine, me, beat=0, released=True)


def was_held(path: Path) -> bool:
    """Whether a process works on a run directory, or ever did."""
    try:
        return bool(_numbers(path / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _take(folder: Path, me: Owner, say: Callable[[str], None]) -> Path:
    """Make the next number, once the owner is known to be gone."""
    waited = False
    while True:
        numbers = _numbers(folder)
        if numbers:
            last, owner, content = folder / f"{numbers[-1]}{_SUFFIX}", None, b""
            with contextlib.suppress(FileNotFoundError):
                content = last.read_bytes()
                owner = _owner(content)
            if owner is not None and not owner.gone:
                if owner.gone is False or waited:
                    raise _taken(folder, owner)
                say(
                    f"{folder.parent}: {owner} has not ended it; waiting up to {LEASE:.0f} s for a "
                    "sign of life"
                )
                waited = True
                if not _silent(last, content):
                    continue
        mine = folder / f"{(numbers or [0])[-1] + 1}{_SUFFIX}"
        if _made(mine, me):
            return mine


def _made(mine: Path, me: Owner) -> bool:
    """Whether the file was made, and is the highest."""
    draft = mine.with_name(f".{os.getpid()}-{socket.gethostname()}-{time.monotonic_ns()}")
    try:
        _write(draft, me, beat=0)
        try:
            # Whole from its first moment on, which no creation is that writes afterwards.
            os.link(draft, mine)
        except FileExistsError:
            return False
        except OSError:
            # A file system without links.
            try:
                with mine.open("x", encoding="utf-8"):
                    pass
            except FileExistsError:
                return False
            _write(mine, me, beat=0)
    finally:
        draft.unlink(missing_ok=True)
    number = int(mine.stem)
    if _numbers(mine.parent)[-1] > number:
        # Others have come and gone since this process looked.
        mine.unlink()
        return False
    for other, file in _files(mine.parent):
        if other < number:
            file.unlink(missing_ok=True)
    return True


def _silent(file: Path, content: bytes) -> bool:
    """Whether an owner of another host gives no sign of life for as long as a lease lasts."""
    # Looks are counted, not the time: while the file system hangs, nobody can write to it either.
    for _ in range(round(LEASE / _LOOK)):
        time.sleep(_LOOK)
        try:
            if file.read_bytes() != content:
                return False
        except FileNotFoundError:
            return False
    return True


def _beat(mine: Path, me: Owner, done: threading.Event) -> None:
    """Give signs of life, and end the process if another one has taken over."""
    beat = 0
    while not done.wait(BEAT):
        beat += 1
        # What cannot be written now, on a full disk or one that is away, may be next time.
        with contextlib.suppress(OSError):
            if (highest := _numbers(mine.parent)[-1:]) and highest[0] > int(mine.stem):
                _end(mine, highest[0])
            _write(mine, me, beat=beat)


def _end(mine: Path, number: int) -> None:
    """Two must not write to one run directory, not even a last checkpoint."""
    with contextlib.suppress(OSError):
        content = (mine.parent / f"{number}{_SUFFIX}").read_bytes()
        print(  # noqa: T201 - the last that this process does
            f"octnas: {mine.parent.parent}: was taken over by {_owner(content)}, since this "
            f"process gave no sign of life for {LEASE:.0f} s; it ends here",
            file=sys.stderr,
            flush=True,
        )
    os._exit(2)


def _write(file: Path, me: Owner, *, beat: int, released: bool = False) -> None:
    document = {"schema": SCHEMA, **asdict(me), "beat": beat, "released": released}
    content = json.dumps(document, ensure_ascii=False).encode().ljust(_SIZE - 1) + b"\n"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(handle, content, 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def _owner(content: bytes) -> Owner | None:
    """Who has a file, if it was not given back.

    One that cannot be read is of somebody unknown: its process was killed as it began, or will
    write it in a moment.
    """
    try:
        document = parse_json(content)
        if document["released"]:
            return None
        return read_as(Owner, {name: document[name] for name in Owner.__dataclass_fields__})
    except (ValueError, LookupError, TypeError):
        return Owner("an unknown host", 0, "an unknown time", "", "")


def _numbers(folder: Path) -> list[int]:
    return sorted(number for number, _ in _files(folder))


def _files(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_NAME.fullmatch(file.name), file) for file in folder.iterdir())
    return [(int(match[1]), file) for match, file in matches if match]


def _taken(folder: Path, owner: Owner) -> RunDirectoryError:
    return RunDirectoryError(
        f"{folder.parent}: {owner} works on it; wait for its end, end it, or use another --run-dir "
        f"(`octnas report {folder.parent} --watch` may look on)"
    )


def _this_process() -> Owner:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    return Owner(socket.gethostname(), pid, now, _started(pid), _system())


def _system() -> str:
    """One boot of one host, and one space of process numbers: containers have their own."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(process: int) -> str:
    """When a process of this host has begun, in ticks of the system; empty if there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Behind the name, which may hold anything; see proc(5).
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
