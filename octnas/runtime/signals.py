"""SIGTERM, SIGHUP and Ctrl-C: where work stops so that it can resume.

Files are whole at any moment, so most work stops at once. A training defers the signal, checks for
it after every step, and then writes a checkpoint.
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

# Seconds for the current step of a training, and of several processes that train together.
PATIENCE, PATIENCE_TOGETHER = 3.0, 15.0
# Signals within this many seconds count as one: a scheduler signals a group of processes, and their
# parent signals each of them again.
_SAME = 2.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal stops the work; raised in the main thread, like a KeyboardInterrupt."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@dataclass
class _State:
    """What signals do in this process."""

    leave: bool = False  # they end the process instead of raising
    patience: float = 0.0  # seconds for which they are deferred
    received: int = 0  # number of the signal; 0 for none
    when: float = 0.0  # by the monotonic clock
    timer: threading.Timer | None = None  # ends the patience
    before: Callable[[int], None] | None = None  # see `before_stop`


_state = _State()


@contextlib.contextmanager
def stoppable(*, leave: bool = False) -> Iterator[None]:
    """Within the block, signals raise `Stopped`; without effect outside of the main thread.

    Args:
        leave: they end the process instead, unless they are deferred; for child processes, whose
            parent reports the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = from_now_on(leave=leave)
    try:
        yield
    except Stopped as stopped:
        if leave:
            # At once: torch's launcher waits for a process that ends otherwise.
            os._exit(128 + stopped.number)
        raise
    finally:
        no_hurry()
        _state.received = 0
        for one, handler in before.items():
            signal.signal(one, handler)


def from_now_on(*, leave: bool = False) -> Mapping[signal.Signals, Any]:
    """As `stoppable`, until the process ends; returns the handlers before."""
    # Ignored signals stay ignored: nohup, or a command in the background of a script.
    mine = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, _on_signal) for one in mine}
    _state.leave, _state.patience, _state.received = leave, 0.0, 0
    return before


@contextlib.contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Start processes within the block that never get signals; this one gets them afterwards.

    By default all signals that stop work are blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within the block, signals raise `Stopped` even where they would end the process."""
    before, _state.leave = _state.leave, False
    try:
        yield
    finally:
        _state.leave = before


@contextlib.contextmanager
def deferred(patience: float = PATIENCE) -> Iterator[Callable[[], int]]:
    """Defer signals within the block.

    Args:
        patience: seconds after which a signal stops the work anyway, unless `no_hurry` is called.

    Yields:
        A function that returns the number of the signal that was received; 0 for none.
    """
    before, _state.patience = _state.patience, patience
    try:
        yield lambda: _state.received
    finally:
        _state.patience = before
        no_hurry()
    if _state.received and not before:
        # Too late for the block to see it.
        _stop(_state.received)


@contextlib.contextmanager
def before_stop(act: Callable[[int], None]) -> Iterator[Callable[[], int]]:
    """On a signal within the block, call a function first, while the work continues.

    Cannot be combined with `deferred`.

    Args:
        act: called in a thread with the number of the signal; the work stops when it returns, or
            on another signal.

    Yields:
        A function that returns the number of the signal that was received; 0 for none.
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
        yield lambda: _state.received
    finally:
        with lock:
            ended.set()
        _state.before = before
    if _state.received:
        _stop(_state.received)


def note(number: int) -> bool:
    """Note a signal that another process has received.

    Returns:
        Whether this process is deferring signals, and so will stop.
    """
    _state.received, _state.when = number, time.monotonic()
    return _state.patience > 0


def last_signal() -> int:
    """The number of the signal that was received; SIGINT if none was.

    Some libraries replace `Stopped` by a plain KeyboardInterrupt.
    """
    return _state.received or signal.SIGINT


def no_hurry() -> None:
    """Wait as long as it takes, as for a checkpoint that is being written."""
    if _state.timer is not None:
        _state.timer.cancel()
        _state.timer = None


def _on_signal(number: int, _: object) -> None:
    now, first = time.monotonic(), not _state.received
    if not first and now - _state.when < _SAME:
        return
    _state.received, _state.when = number, now
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
    """Signal again: an exception in this thread would not stop the main one."""
    _state.when = -math.inf
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)  # also wakes it
