"""Processes that decode images, where they cannot hand them over."""

import subprocess
import sys
from typing import Any

import pytest

from octnas.data.loader import load
from octnas.errors import DataError


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. ",
    ],
)
def test_no_shared_memory(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", broken)
    with pytest.raises(DataError, match=r"/dev/shm has too little here; set data.workers=0"):
        list(load([1, 2], 0))  # type: ignore[arg-type]


LEFT_BEHIND = """
import os, signal
from octnas.data.loader import load
batches = load(list(range(1000)), 2)
next(batches)
if {group}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import subprocess
    subprocess.run(["sh", "-c", f"kill -TERM -{{os.getpid()}}"])
    print(sum(1 for _ in batches))
"""


@pytest.mark.parametrize(("group", "said"), [(False, ""), (True, "999\n")])
def test_processes_end_with_their_parent_and_not_with_its_group(group: bool, said: str) -> None:
    """At its exit a process terminates what it has left behind, and waits for it."""
    found = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND.format(group=group)],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, said)
