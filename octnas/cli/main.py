"""The ``octnas`` program."""

import errno
import io
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

import typer

from octnas import __version__
from octnas.cli import (
    architecture,
    bench,
    cost,
    export,
    latency,
    plan,
    report,
    run,
    tools,
)
from octnas.errors import OctnasError, SettingWarning

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What is never a mistake in the program, whatever file it was about.
_DISK = (*_FULL, errno.EROFS, errno.EIO, errno.ESTALE)
# Of streams, what raises over a letter that the encoding lacks.
_FAILING = ("strict", "surrogateescape")

app = typer.Typer(
    name="octnas",
    help="Find the octave ratio of every layer of a ResNet under a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
run.add_to(app)
report.add_to(app)
export.add_to(app)
architecture.add_to(app)
plan.add_to(app)
cost.add_to(app)
bench.add_to(app)
latency.add_to(app)
tools.add_to(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"octnas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_version,
        is_eager=True,
        help="Print the version.",
    ),
) -> None:
    """Find the octave ratio of every layer of a ResNet under a budget."""


_show_other = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning about a setting as one line."""
    if issubclass(category, SettingWarning):
        typer.echo(f"octnas: {message}", err=True)
    else:
        _show_other(message, category, filename, lineno, file, line)


def main() -> None:
    """Run the program; a mistake that the user can mend is a line each and exit code 2."""
    # Python puts the working directory before all else where a process begins with -c, as those of
    # multiprocessing do, torch's launcher's too: a random.py there would be run.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for stream in (sys.stdout, sys.stderr):
        # One that cannot hold × or α shows ? in their place; stderr has an escape by itself.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors="replace")
    warnings.simplefilter("default", SettingWarning)
    warnings.showwarning = _show_warning
    try:
        Path.cwd()
    except FileNotFoundError:
        # Before anything is loaded, whose errors would be about something else.
        typer.echo("octnas: the working directory is gone; go to one that is there", err=True)
        sys.exit(2)
    try:
        app()
    except OctnasError as error:
        from octnas.io.credentials import redact

        for line in redact(str(error)).splitlines():
            typer.echo(f"octnas: {line}", err=True)
        sys.exit(2)
    except MemoryError as error:
        # Whatever was being done: of that nothing is known here.
        reason = " ".join(str(error).split())
        typer.echo(
            f"octnas: the memory of this machine did not suffice{reason and f' ({reason})'}; make "
            "smaller what is largest: images, their number, batch_size, workers or the network",
            err=True,
        )
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        # A full disk, a file in the place of a folder, a folder that may not be written to.
        place = "" if error.filename is None else f"{error.filename}: "
        more = "; with more room the same command goes on" if error.errno in _FULL else ""
        typer.echo(f"octnas: {place}{error.strerror}{more}", err=True)
        sys.exit(2)
