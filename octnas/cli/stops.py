"""How a command ends that a signal has stopped."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from octnas.stopping import Stopped, last_signal, stoppable

GOES_ON = "the same command goes on from here"
NOTHING = "nothing of it is kept"


@contextmanager
def stopped_with_a_line(kept: str) -> Iterator[None]:
    """Say what is kept after Ctrl-C or another signal; the exit code is the shell's for it.

    Args:
        kept: in words, or how to go on.
    """
    with stoppable():
        try:
            yield
        except KeyboardInterrupt as error:
            stopped = error if isinstance(error, Stopped) else Stopped(last_signal())
            typer.echo(f"octnas: {stopped}: stopped; {kept}", err=True)
            raise typer.Exit(128 + stopped.number) from None
