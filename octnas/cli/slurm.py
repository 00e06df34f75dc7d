"""``octnas slurm``: a run as batch files."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from octnas.cli.run import Overrides, RunDir


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(slurm)


def slurm(
    experiment: Annotated[
        Path, typer.Argument(help="A YAML file, or the directory of a run.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the files; on the shared disk.", show_default=False)
    ],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    partition: Annotated[str, typer.Option(help="By default the cluster's.")] = "",
    account: Annotated[str, typer.Option(help="By default the user's.")] = "",
    gpus: Annotated[int, typer.Option(help="Of the supernet; others get one. 0: none.")] = 0,
    cpus: Annotated[int, typer.Option(help="Cores of a job.")] = 4,
    mem: Annotated[str, typer.Option(help="Such as 32G; by default the cluster's.")] = "",
    time: Annotated[
        str, typer.Option(metavar="HH:MM:SS", help="Of a job, before it is requeued.")
    ] = "24:00:00",
) -> None:
    """Write batch files for SLURM, a job for each stage, that go on where they were ended."""
    from octnas.cluster.slurm import SlurmSettings
    from octnas.pipeline.slurm import write_jobs

    settings = SlurmSettings(
        partition=partition, account=account, gpus=gpus, cpus=cpus, mem=mem, time=time
    )
    submit = write_jobs(experiment, out, settings, overrides=overrides or (), run_dir=run_dir)
    typer.echo(f"bash {shlex.quote(str(submit))}")
