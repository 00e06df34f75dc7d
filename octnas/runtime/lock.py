"""The run lock: one process at a time uses a run directory, on whatever host.

It is a `filelock.SoftFileLease`: ``run.lock`` names its owner, who touches it every few seconds. An
owner is dead if its process on this host is, or if a newcomer has seen no heartbeat for as long as
a lease lasts; clocks of hosts are not compared. A process that was suspended for so long and finds
another owner when it resumes exits at once.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import OwnerRecord, SoftFileLease, Timeout

from octnas.errors import RunDirectoryError

LOCK_FILE = "run.lock"

# Seconds between two heartbeats, and without one until another host may take over.
BEAT, LEASE = 5.0, 60.0
_POLL = 1.0  # seconds between two checks of the lock of another host
_INITIAL = "effffffc"  # namespace of process numbers outside of containers; proc_ns.h of Linux


@contextlib.contextmanager
def held(path: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock of a run directory, made if it is missing, within a ``with`` block.

    Raises:
        RunDirectoryError: another process is using the run directory.
        OSError: nothing can be written there.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(
        path / LOCK_FILE,
        lease_duration=LEASE,
        heartbeat_interval=BEAT,
        on_compromise=lambda _: _exit(path, lock),
        thread_local=False,
    )
    _acquire(lock, path, say)
    try:
        yield
    finally:
        # If the disk fails, the lease runs out.
        with contextlib.suppress(OSError):
            lock.release()


def _acquire(lock: SoftFileLease, path: Path, say: Callable[[str], None]) -> None:
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
        return
    owner = lock.owner
    if owner and _runs_here(owner):
        raise _in_use(path, owner)
    say(f"{path}: in use by {_name(owner)}; waiting up to {LEASE:.0f} s for a sign of life")
    before = _heartbeat(path)
    try:
        lock.acquire(
            timeout=LEASE + 2 * BEAT,
            poll_interval=_POLL,
            cancel_check=lambda: _heartbeat(path) not in (None, before),
        )
    except Timeout:
        if lock.owner or _heartbeat(path) != before:
            raise _in_use(path, lock.owner or owner) from None
        # A torn file, as a full disk leaves it: filelock waits for its owner to sign it.
        (path / LOCK_FILE).unlink(missing_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise _in_use(path, lock.owner or owner) from None


def _heartbeat(path: Path) -> int | None:
    """When the lock was last touched, by the clock of the file system; None if there is none."""
    try:
        return (path / LOCK_FILE).stat().st_mtime_ns
    except OSError:
        return None


def _runs_here(owner: OwnerRecord) -> bool:
    """Whether the owner is a running process of this host; False where that cannot be known."""
    # In containers, filelock adds the namespace of process numbers to the name of the host.
    host, _, namespace = owner.hostname.partition("?pidns-")
    try:
        own = Path("/proc/self/ns/pid").stat().st_ino
        stat = Path(f"/proc/{owner.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    here = host == socket.gethostname() and int(namespace or _INITIAL, 16) == own
    return here and stat.rpartition(")")[2].split()[0] not in "ZX"  # see proc(5)


def _name(owner: OwnerRecord | None) -> str:
    if owner is None:
        return "an unknown process"
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _in_use(path: Path, owner: OwnerRecord | None) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path}: {_name(owner)} is using this run; wait for it, stop it, or use another --run-dir "
        f"(`octnas report {path} --watch` can follow it)"
    )


def _exit(path: Path, lock: SoftFileLease) -> None:
    """Two processes must not write to one run directory, not even a last checkpoint."""
    with contextlib.suppress(OSError):
        print(  # noqa: T201 - the last that this process does
            f"octnas: {path}: taken over by {_name(lock.owner)}, since this process gave no sign "
            f"of life for {LEASE:.0f} s; exiting",
            file=sys.stderr,
            flush=True,
        )
    os._exit(2)
