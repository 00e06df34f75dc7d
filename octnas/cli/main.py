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
from octnas.cli import architecture, bench, cost, export, latency, plan, report, run, tools
from octnas.errors import OctnasError, SettingWarning

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Never a bug, whatever file it was about.
_DISK = (*_FULL, errno.EROFS, errno.EIO, errno.ESTALE)
# Error handlers of streams that raise for a letter the encoding lacks.
_FAILING = ("strict", "surrogateescape")

app = typer.Typer(
    name="octnas",
    help="Find the octave ratio of every layer of a ResNet under a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
run.add_to(app)
architecture.add_to(app)
latency.add_to(app)
app.command()(report.report)
app.command()(report.compare)
app.command()(export.export)
app.command()(plan.plan)
app.command()(cost.cost)
app.command()(bench.bench)
app.command()(tools.slurm)
app.command()(tools.sync)
app.command()(tools.init)
app.command()(tools.doctor)


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
    """Run the program; errors that the user can fix are one line each, with exit code 2."""
    # Processes that begin with -c, as multiprocessing's and torch's launcher's do, have the working
    # directory first in their path: a random.py there would be imported.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for stream in (sys.stdout, sys.stderr):
        # A stream that cannot encode × or α shows ? instead.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors="replace")
    warnings.simplefilter("default", SettingWarning)
    warnings.showwarning = _show_warning
    try:
        Path.cwd()
    except FileNotFoundError:
        # Later errors would be about something else.
        typer.echo("octnas: the working directory no longer exists; change to another", err=True)
        sys.exit(2)
    try:
        app()
    except OctnasError as error:
        from octnas.io.credentials import redact

        for line in redact(str(error)).splitlines():
            typer.echo(f"octnas: {line}", err=True)
        sys.exit(2)
    except MemoryError as error:
        reason = " ".join(str(error).split())
        typer.echo(
            f"octnas: out of memory{reason and f' ({reason})'}; reduce the images, "
            "batch_size, workers or the network",
            err=True,
        )
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        more = "; free some space, and the same command resumes" if error.errno in _FULL else ""
        typer.echo(f"octnas: {place}{error.strerror}{more}", err=True)
        sys.exit(2)
