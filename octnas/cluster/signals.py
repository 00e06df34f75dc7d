"""Forward signals of the driver to Ray's workers, which would not get them otherwise.

Ray can stop a task only by killing its process. So a file in the run directory, which all nodes
share, tells workers to stop, and a training then writes a checkpoint as if it had got the signal
itself. Every worker writes a heartbeat into a file of its own, so that the driver does not wait for
one that was killed. Files are overwritten in place: a shared file system may take a minute to show
a new file, but shows what an existing one holds.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from octnas.errors import ClusterError
from octnas.io.files import remove_tree
from octnas.runtime.signals import Stopped, before_stop, note

P = ParamSpec("P")
Result = TypeVar("Result")

_FOLDER, _STOP = "stops", "stop"
_PAUSE = 0.3  # seconds between two reads of a file
# Seconds for the workers' last steps and checkpoints, and without a heartbeat until one is dead.
_END, _DEAD = 25.0, 5.0
# Seconds after which a stopped worker exits even if the driver has not ended it.
_REST = 60.0
_STOPPED = 0  # in place of a heartbeat


@dataclass(frozen=True)
class Signals:
    """Makes workers stop on a signal of the driver, through files in a folder."""

    folder: Path

    def reach(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """Wrap a function for workers so that a signal of the driver stops it.

        A stopped worker waits until the driver ends. Picklable if the function is.
        """
        return partial(_listening, self.folder, function)


@contextmanager
def forwarding_signals(directory: Path) -> Iterator[Signals]:
    """In the driver: a signal stops the block after the workers; requires the run lock."""
    place = directory.resolve() / _FOLDER
    remove_tree(place, ignore_errors=True)  # leftovers of a killed driver
    folder = place / uuid.uuid4().hex
    folder.mkdir(parents=True)
    (folder / _STOP).write_text("0")
    try:
        with before_stop(partial(_stop_workers, folder)) as received:
            try:
                yield Signals(folder)
            except ClusterError as error:
                # A signal to all processes of a job ends Ray as well.
                if number := received():
                    raise Stopped(number) from error
                raise
    finally:
        remove_tree(place, ignore_errors=True)


def _listening(
    folder: Path, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    own, done = folder / uuid.uuid4().hex, threading.Event()
    thread = threading.Thread(target=_listen, args=(folder / _STOP, own, done), daemon=True)
    thread.start()
    try:
        return function(*args, **kwargs)
    except Stopped:
        # Ray would take an exception or the end of this process as a failure, and try again.
        done.set()
        thread.join()
        time.sleep(_REST)
        raise
    finally:
        # Its last heartbeat would bring back a folder that the driver is removing.
        done.set()
        thread.join()


def _listen(stop: Path, own: Path, done: threading.Event) -> None:
    """Write heartbeats until the work is done, and pass on a signal."""
    beat, noted = _STOPPED, False
    while not done.is_set():
        beat += 1
        # Whatever fails now may succeed next time.
        with suppress(OSError, ValueError):
            own.write_text(str(beat))
            number = int(stop.read_text())
            if number and not noted:
                noted = True
                if not note(number):
                    break
        done.wait(_PAUSE)
    with suppress(OSError):
        own.write_text(str(_STOPPED))


def _stop_workers(folder: Path, number: int) -> None:
    """Tell the workers to stop, and wait until none is working."""
    with suppress(OSError):
        (folder / _STOP).write_text(str(number))
        end, beats = time.monotonic() + _END, dict[str, tuple[int, float]]()
        while time.monotonic() < end:
            now = time.monotonic()
            for file in folder.iterdir():
                with suppress(OSError, ValueError):
                    beat = int(file.read_text())
                    if file.name != _STOP and beat != beats.get(file.name, (None, now))[0]:
                        beats[file.name] = (beat, now)
            if all(beat == _STOPPED or now - since > _DEAD for beat, since in beats.values()):
                return
            time.sleep(_PAUSE)
