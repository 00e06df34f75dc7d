"""SIGTERM, SIGHUP and Ctrl-C: where work is broken off, so that it can be gone on with.

Everything on disk is whole at any moment, so that most work ends where it is. A training ends
behind the step that it is at, with a checkpoint: it defers the signal, and asks after every step.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Seconds for the step that a training is at; of several processes, the slowest decides.
PATIENCE, PATIENCE_TOGETHER = 3.0, 15.0
# Within so many seconds a signal is the same one: a scheduler may signal a group of processes, and
# their parent each of them once more.
_SAME = 2.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The work is to stop; raised in the main thread, as Ctrl-C is by itself.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@dataclass
class _State:
    """What signals do in this process.

    Attributes:
        leave: whether they end it at once, rather than raise.
        patience: seconds for which they are deferred; 0 for not at all.
        asked: number of the signal that has come; 0 for none.
        when: by the monotonic clock.
        timer: ends the patience.
        before: called in a thread with the number of the signal, and stops the work.
    """

    leave: bool = False
    patience: float = 0.0
    asked: int = 0
    when: float = 0.0
    timer: threading.Timer | None = None
    before: Callable[[int], None] | None = None


_state = _State()


@contextlib.contextmanager
def stoppable(*, leave: bool = False) -> Iterator[None]:
    """Within the block, signals stop the work by raising `Stopped`; only in a main thread.

    Args:
        leave: they end the process, unless they are deferred: for one that another process waits
            for, which says what there is to say.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = from_now_on(leave=leave)
    try:
        yield
    except Stopped as stopped:
        if leave:
            # At once: torch's launcher waits for what other ends of a process bring.
            os._exit(128 + stopped.number)
        raise
    finally:
        no_hurry()
        _state.asked = 0
        for one, handler in before.items():
            signal.signal(one, handler)


def from_now_on(*, leave: bool = False) -> Mapping[signal.Signals, Any]:
    """Let signals stop the work until the process ends, see `stoppable`; what they did before."""
    # What is ignored stays so: nohup, a command in the background of a script.
    mine = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, _on_signal) for one in mine}
    _state.leave, _state.patience, _state.asked = leave, 0.0, 0
    return before


@contextlib.contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Begin processes within the block that signals never reach; here they come afterwards.

    Args:
        numbers: of the signals; all that stop work if none is given.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within the block, signals raise also in a process that they would end otherwise."""
    before, _state.leave = _state.leave, False
    try:
        yield
    finally:
        _state.leave = before


@contextlib.contextmanager
def deferred(patience: float = PATIENCE) -> Iterator[Callable[[], int]]:
    """Within the block, a signal is noted.

    Args:
        patience: seconds after which it stops the work nevertheless, unless there is `no_hurry`.

    Yields:
        A function that returns the number of the signal that has come; 0 for none.
    """
    before, _state.patience = _state.patience, patience
    try:
        yield lambda: _state.asked
    finally:
        _state.patience = before
        no_hurry()
    if _state.asked and not before:
        # It came too late to be asked for.
        _stop(_state.asked)


@contextlib.contextmanager
def before_stop(act: Callable[[int], None]) -> Iterator[Callable[[], int]]:
    """Within the block, something is done first when a signal comes, while the work goes on.

    Not together with `deferred`, in either order.

    Args:
        act: called in a thread with the number of the signal; the work stops when it returns, or
            when another signal comes.

    Yields:
        A function that returns the number of the signal that has come; 0 for none.
    """
    ended, lock = threading.Event(), threading.Lock()

    def act_and_stop(number: int) -> None:
        try:
            act(number)
        finally:
            with lock:
                if not ended.is_set():
                    _lose_patience(number)

    before, _state.before = _state.before, act_and_stop
    try:
        yield lambda: _state.asked
    finally:
        with lock:
            ended.set()
        _state.before = before
    if _state.asked:
        _stop(_state.asked)


def ask(number: int) -> bool:
    """Note a signal that another process has got.

    Returns:
        Whether there is work that defers signals, and so will stop by itself.
    """
    _state.asked, _state.when = number, time.monotonic()
    return _state.patience > 0


def last_signal() -> int:
    """The number of the signal that has come; that of Ctrl-C where none has.

    Libraries put a plain KeyboardInterrupt in the place of `Stopped`.
    """
    return _state.asked or signal.SIGINT


def no_hurry() -> None:
    """What comes now is worth waiting for, such as a checkpoint that is being written."""
    if _state.timer is not None:
        _state.timer.cancel()
        _state.timer = None


def _on_signal(number: int, _: object) -> None:
    now, first = time.monotonic(), not _state.asked
    if not first and now - _state.when < _SAME:
        return
    _state.asked, _state.when = number, now
    if first and _state.patience:
        _state.timer = threading.Timer(_state.patience, _lose_patience, (number,))
        _state.timer.daemon = True
        _state.timer.start()
    elif first and _state.before is not None:
        threading.Thread(target=_state.before, args=(number,), daemon=True).start()
    else:
        _stop(number)


def _stop(number: int) -> None:
    if _state.leave:
        os._exit(128 + number)
    raise Stopped(number)


def _lose_patience(number: int) -> None:
    """As if the signal had come again: an exception of this thread would stop nothing."""
    _state.when = -math.inf
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)  # wakes it, too, where it waits
