"""Settings of the process and of other people's modules that are changed for a while."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within a ``with`` block; None unsets one.

    Afterwards these variables are as they were, whatever was done to them in between.
    """
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def level(logger: logging.Logger, value: int) -> Iterator[None]:
    """Set the level of a logger within a ``with`` block."""
    before = logger.level
    logger.setLevel(value)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def handler_kept(number: signal.Signals) -> Iterator[Callable[[], None]]:
    """Restore a signal's handler after a ``with`` block, or earlier by calling what this yields."""
    before = signal.getsignal(number)

    def restore() -> None:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(number, before)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def attribute(owner: ModuleType | type, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module or class within a ``with`` block; it must be there already."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
