"""What the user sees during a run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol


class Progress(Protocol):
    """Bars and lines."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def bar(self, title: str, total: int) -> contextlib.AbstractContextManager["Bar"]:
        """A progress bar for as long as the context lasts."""
        ...


class Bar(Protocol):
    """A progress bar."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Advance by some steps; the note is shown behind the bar."""
        ...


class Quiet:
    """No bars; lines go to a function, by default nowhere."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.say = say

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator["Quiet"]:  # noqa: ARG002
        """See `Progress.bar`."""
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """See `Bar.advance`."""
