"""``octnas doctor``: what there is on this machine, and what is missing."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    directory: Annotated[
        Path, typer.Argument(help="Where runs are written: its disk is looked at.")
    ] = Path("runs"),
) -> None:
    """Print versions, devices and disks, and what is missing with the command that installs it.

    The exit code is 0 where everything that octnas needs works, and 1 where something does not;
    what is optional never changes it.
    """
    from octnas.pipeline.doctor import examine

    found = examine(directory)
    for heading, lines in found.sections.items():
        typer.echo(f"{heading}:")
        for line in lines:
            typer.echo(f"  {line}")
    if found.problems:
        typer.echo("Not working:")
        for problem in found.problems:
            typer.echo(f"  {problem}")
        raise typer.Exit(1)
    typer.echo("Everything that octnas needs is there.")
