"""``octnas doctor``, ``init``, ``sync`` and ``slurm``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from octnas.cli.run import Overrides, RunDir
from octnas.errors import ConfigError


def doctor(
    directory: Annotated[
        Path, typer.Argument(help="Folder for runs, whose disk is checked.")
    ] = Path("runs"),
) -> None:
    """Print versions, devices and disks, and how to install what is missing.

    Exits with 1 if something that octnas requires does not work.
    """
    from octnas.pipeline.doctor import examine

    found = examine(directory)
    for heading, lines in found.sections.items():
        typer.echo(f"{heading}:")
        for line in lines:
            typer.echo(f"  {line}")
    if found.problems:
        typer.echo("Problems:")
        for problem in found.problems:
            typer.echo(f"  {problem}")
        raise typer.Exit(1)
    typer.echo("Everything that octnas requires works.")


def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the files; created if missing.")
    ] = Path("experiments"),
    minimal: Annotated[
        bool, typer.Option("--minimal", help="Write a short experiment for your own images.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Your images, for --minimal: train/CLASS and val/CLASS."),
    ] = None,
) -> None:
    """Write the shipped experiments, or a minimal one for your images; existing files are kept."""
    if minimal != (data is not None):
        raise ConfigError("init: found one of --minimal and --data, allowed: both or neither")
    if data is not None:
        from octnas.pipeline.minimal import minimal_experiment

        found = minimal_experiment(data)
        for problem in found.problems:
            typer.echo(f"problem  {problem}; remove it or set data.on_error: skip")
        files = {f"{found.name}.yaml": found.text.encode()}
    else:
        from octnas.config import shipped_experiments

        files = {source.name: source.read_bytes() for source in shipped_experiments()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = folder / name
        existed = target.exists()
        if not existed:
            target.write_bytes(content)
        typer.echo(f"kept     {target}, which exists" if existed else f"written  {target}")
    example = next(iter(files)) if minimal else "digits.yaml"
    typer.echo(f"\nTry: octnas run {folder / example}")


def sync(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Send the records that MLflow has not received yet, without duplicates."""
    from octnas.pipeline.run import sync_run

    for line in sync_run(run, overrides or ()):
        typer.echo(line)


def slurm(
    experiment: Annotated[
        Path, typer.Argument(help="A YAML file, or a run directory.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the files, on the shared disk.", show_default=False)
    ],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    partition: Annotated[str, typer.Option(help="Partition; default: the cluster's.")] = "",
    account: Annotated[str, typer.Option(help="Account; default: the user's.")] = "",
    gpus: Annotated[
        int, typer.Option(help="GPUs of the supernet job; other jobs get one. 0 for none.")
    ] = 0,
    cpus: Annotated[int, typer.Option(help="CPU cores of each job.")] = 4,
    mem: Annotated[
        str, typer.Option(help="Memory of each job, such as 32G; default: the cluster's.")
    ] = "",
    time: Annotated[
        str, typer.Option(metavar="HH:MM:SS", help="Time limit of each job, before it is requeued.")
    ] = "24:00:00",
) -> None:
    """Write SLURM batch files, one job per stage, that resume after their time limit."""
    from octnas.cluster.slurm import SlurmSettings
    from octnas.pipeline.slurm import write_jobs

    settings = SlurmSettings(
        partition=partition, account=account, gpus=gpus, cpus=cpus, mem=mem, time=time
    )
    submit = write_jobs(experiment, out, settings, overrides=overrides or (), run_dir=run_dir)
    typer.echo(f"bash {shlex.quote(str(submit))}")
