"""Breaking a run off, and going on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.tiny import EXPERIMENT, TINY

# A process that is started in the background ignores Ctrl-C, and so would its children.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from octnas.cli.main import main
main()
"""
COMMAND = [
    sys.executable,
    "-c",
    PROGRAM,
    "run",
    str(EXPERIMENT),
    *(part for override in TINY for part in ("--set", override)),
    *("--set", "retrain.workers=2", "--set", "tracking.enabled=false"),
    *("--set", "retrain.recipe.epochs=200"),
]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    """In the middle of two trainings, which are processes of their own."""
    process = subprocess.Popen(
        COMMAND, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        plan = tmp_path / "runs" / "tiny" / "retrain" / "plan.json"
        deadline = time.monotonic() + 120
        while not plan.exists() or len(session(process.pid)) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while session(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found
