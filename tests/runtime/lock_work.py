"""What the processes of the tests of leases do."""

import os
import socket
import sys
import time
from pathlib import Path

import octnas.runtime.lock as lease
from octnas.errors import RunDirectoryError
from octnas.runtime.lock import held


def hold(path: str, seconds: str) -> None:
    """Work on a run directory for so long; a line when that begins."""
    with held(Path(path)):
        print("held", flush=True)  # noqa: T201
        time.sleep(float(seconds))


def race(path: str, rounds: str) -> None:
    """Take a run directory again and again, and be alone in it each time; how often it was so."""
    inside, times = Path(path) / "inside", 0
    end = time.monotonic() + 30
    while times < int(rounds) and time.monotonic() < end:
        try:
            with held(Path(path)):
                handle = os.open(inside, os.O_CREAT | os.O_EXCL)
                os.close(handle)
                time.sleep(0.002)
                inside.unlink()
            times += 1
        except RunDirectoryError:
            time.sleep(0.001)
    print(times)  # noqa: T201


def elsewhere(path: str, name: str, seconds: str) -> None:
    """As if on another host, with quick heartbeats and a short lease."""
    socket.gethostname = lambda: name  # type: ignore[method-assign]
    lease.BEAT, lease.LEASE, lease._POLL = 0.1, 1.0, 0.05
    hold(path, seconds)


def main() -> None:
    """The function of the first argument with the others."""
    try:
        globals()[sys.argv[1]](*sys.argv[2:])
    except RunDirectoryError as error:
        sys.exit(str(error))
