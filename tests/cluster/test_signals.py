"""A driver that gets a signal, and a worker that it tells: both processes, without Ray."""

import signal
import time
from pathlib import Path

import pytest

from octnas.cluster.signals import forwarding_signals
from tests.programs import begun

PROGRAM = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import octnas.cluster.signals as signals
from octnas.runtime.signals import Stopped, deferred, stoppable

def say(what): print(what, flush=True)

def work(how):
    say("begun")
    if how == "deaf":
        with deferred():
            time.sleep(60)
    if how == "dies":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "trains":
        with deferred() as asked:
            while not asked():
                time.sleep(0.01)
            say(f"checkpoint for {asked()}")
    else:
        time.sleep(60)

signals._END, signals._DEAD = (30.0, 1.5) if sys.argv[2] == "dies" else (2.0, 30.0)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
worker = None
try:
    with stoppable(), signals.forwarding_signals(Path(sys.argv[1])) as word:
        context = multiprocessing.get_context("fork")
        # No signal reaches it: Ray's workers are no children of the driver.
        worker = context.Process(target=word.reach(work), args=(sys.argv[2],))
        worker.start()
        worker.join()
        time.sleep(60)
except Stopped as error:
    say(f"stopped {error}, the worker {'lives' if worker.is_alive() else 'has ended'}")
    worker.kill()
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [("trains", ["checkpoint for 15"]), ("judges", []), ("deaf", []), ("dies", [])],
)
def test_a_training_writes_its_checkpoint_and_nothing_else_is_waited_for_in_vain(
    tmp_path: Path, how: str, says: list[str]
) -> None:
    """A worker that came to rest lives on: its end would be a failure to Ray."""
    with begun(PROGRAM, str(tmp_path), how) as process:
        # A worker is known by its first beat.
        time.sleep(3 if how == "dies" else 1)
        process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        out, _ = process.communicate(timeout=60)
        assert time.monotonic() - signalled < 20
    end = "has ended" if how == "dies" else "lives"
    assert out.splitlines() == [*says, f"stopped SIGTERM, the worker {end}"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_driver_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "stops").mkdir()
    (tmp_path / "stops" / "stop").write_text("15")
    with forwarding_signals(tmp_path) as word:
        assert [path.name for path in (tmp_path / "stops").iterdir()] == [word.folder.name]
        assert word.reach(divmod)(7, 2) == (3, 1)
    assert list(tmp_path.iterdir()) == []
