"""``octnas init``: the experiments that octnas ships, for editing."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write them; made if it is missing.")],
) -> None:
    """Write the shipped experiments as YAML files; existing files are left alone."""
    from octnas.shipped import shipped_experiments

    folder.mkdir(parents=True, exist_ok=True)
    for source in shipped_experiments():
        target = folder / source.name
        if target.exists():
            typer.echo(f"kept     {target}, which was there before")
            continue
        target.write_bytes(source.read_bytes())
        typer.echo(f"written  {target}")
    typer.echo(f"\nTry: octnas run {folder / 'digits.yaml'}")
