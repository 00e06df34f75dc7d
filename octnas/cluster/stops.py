"""Signals of the driver, told to Ray's workers, which none of its signals reaches.

A file says that they are to stop: all nodes share the run directory, and Ray's own way to break off
a task is to kill its process. A training that is told so writes a checkpoint, as one does that gets
the signal itself.
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from octnas.run_directory import write_text
from octnas.stopping import Stopped, ask, before_stop

P = ParamSpec("P")
Result = TypeVar("Result")

_FOLDER, _STOP = "stops", "stop"
# Seconds between two looks of a worker, and for which the driver waits for its workers' last steps
# and checkpoints.
_PAUSE, _END = 0.3, 20.0
# Seconds after which a worker that has stopped ends even if the driver's end has not ended it.
_REST = 60.0


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
    folder = directory.resolve() / _FOLDER
    # A driver that was killed has left it.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with before_stop(partial(_tell, folder)):
            yield Stops(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listening(
    folder: Path, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    own, done = folder / uuid.uuid4().hex, threading.Event()
    own.touch()
    threading.Thread(target=_listen, args=(folder, own, done), daemon=True).start()
    try:
        return function(*args, **kwargs)
    except Stopped:
        # Ray would take the end of this process, or an exception, as a failure, and begin again.
        own.unlink(missing_ok=True)
        time.sleep(_REST)
        raise
    finally:
        done.set()
        own.unlink(missing_ok=True)


def _tell(folder: Path, number: int) -> None:
    """Tell the workers, and wait until none of them is at work."""
    write_text(folder / _STOP, str(number))
    end = time.monotonic() + _END
    with suppress(FileNotFoundError):  # the driver has come to its end meanwhile
        while {path.name for path in folder.iterdir()} != {_STOP} and time.monotonic() < end:
            time.sleep(_PAUSE)


def _listen(folder: Path, own: Path, done: threading.Event) -> None:
    while not done.wait(_PAUSE):
        if (folder / _STOP).exists():
            if not ask(int((folder / _STOP).read_text())):
                own.unlink(missing_ok=True)
            return
