"""Signals of the driver, told to Ray's workers, which none of its signals reaches.

A file says that they are to stop: all nodes share the run directory, and Ray's own way to break off
a task is to kill its process. A training that is told so writes a checkpoint, as one does that gets
the signal itself.

Files are written over in place and opened for every look: a shared file system may say for a minute
that there is no such file where there was none, but gives what an open one holds now. A worker
writes a beat into a file of its own, so that one that was killed is not waited for.
"""

import os
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
from octnas.runtime.signals import Stopped, ask, before_stop

P = ParamSpec("P")
Result = TypeVar("Result")

_FOLDER, _STOP = "stops", "stop"
_PAUSE = 0.3  # seconds between two looks
# Seconds for the workers' last steps and checkpoints, and without a beat until one counts as dead.
_END, _DEAD = 25.0, 5.0
# Seconds after which a worker that has stopped ends even if the driver's end has not ended it.
_REST = 60.0
_AT_REST = 0  # in the place of a beat


@dataclass(frozen=True)
class Stops:
    """Word of a signal that the driver gets.

    Attributes:
        folder: by which the workers are told.
    """

    folder: Path

    def reach(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """A function for workers that is stopped as by a signal when the driver gets one.

        The process comes to rest then, behind the checkpoint of a training if it is at one, until
        the driver ends. Picklable if the function is.
        """
        return partial(_listening, self.folder, function)


@contextmanager
def telling_stops(directory: Path) -> Iterator[Stops]:
    """In the driver: a signal that comes within the block stops it when the workers have stopped.

    Args:
        directory: the run directory, which all nodes share and nobody else works on.
    """
    place = directory.resolve() / _FOLDER
    # A driver that was killed has left it.
    remove_tree(place, ignore_errors=True)
    folder = place / uuid.uuid4().hex
    folder.mkdir(parents=True)
    _write(folder / _STOP, 0, os.O_CREAT)
    try:
        with before_stop(partial(_tell, folder)) as asked:
            try:
                yield Stops(folder)
            except ClusterError as error:
                # A signal to all processes of a job ends Ray, too.
                if number := asked():
                    raise Stopped(number) from error
                raise
    finally:
        remove_tree(place, ignore_errors=True)


def _listening(
    folder: Path, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    own, done = folder / uuid.uuid4().hex, threading.Event()
    thread = threading.Thread(target=_listen, args=(folder, own, done), daemon=True)
    thread.start()
    try:
        return function(*args, **kwargs)
    except Stopped:
        # Ray would take the end of this process, or an exception, as a failure, and begin again.
        done.set()
        thread.join()
        time.sleep(_REST)
        raise
    finally:
        done.set()


def _listen(folder: Path, own: Path, done: threading.Event) -> None:
    """Beat until the work is done, and pass word of a signal on."""
    beat, told = _AT_REST, False
    while not done.is_set():
        beat += 1
        # What goes wrong now may go well the next time.
        with suppress(OSError, ValueError):
            _write(own, beat, os.O_CREAT)
            number = _read(folder / _STOP)
            if number and not told:
                told = True
                if not ask(number):
                    break
        done.wait(_PAUSE)
    with suppress(OSError):
        _write(own, _AT_REST)


def _tell(folder: Path, number: int) -> None:
    """Tell the workers, and wait until none of them is at work."""
    with suppress(OSError):
        _write(folder / _STOP, number)
        end, beats = time.monotonic() + _END, dict[str, tuple[int, float]]()
        while time.monotonic() < end:
            now = time.monotonic()
            for name in set(os.listdir(folder)) - {_STOP}:  # noqa: PTH208 - names are all it takes
                with suppress(OSError, ValueError):
                    beat = _read(folder / name)
                    if beat != beats.get(name, (None, now))[0]:
                        beats[name] = (beat, now)
            if all(beat == _AT_REST or now - since > _DEAD for beat, since in beats.values()):
                return
            time.sleep(_PAUSE)


def _write(path: Path, number: int, flags: int = 0) -> None:
    """Write a number over the one in a file; in one piece, so that no reader meets half of one."""
    handle = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        os.pwrite(handle, f"{number:20d}".encode(), 0)
    finally:
        os.close(handle)


def _read(path: Path) -> int:
    return int(path.read_text())
