"""``octnas sync``: records of a run that its MLflow store does not have yet."""

from pathlib import Path
from typing import Annotated

import typer

from octnas.cli.run import Overrides


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sync)


def sync(
    run: Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Send to MLflow what a run could not send, since the server was away; nothing twice."""
    from octnas.pipeline.sync import sync_run

    for line in sync_run(run, overrides or ()):
        typer.echo(line)
