"""``octnas doctor``: what there is on this machine, and what is missing.

``octnas init``: the experiments that octnas ships, for editing.

``octnas sync``: records of a run that its MLflow store does not have yet.

``octnas slurm``: a run as batch files.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from octnas.cli.run import Overrides, RunDir


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (slurm, sync, init, doctor):
        app.command()(command)


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


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; created if missing.")] = Path(
        "experiments"
    ),
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
        from octnas.errors import ConfigError

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
    run: Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Send to MLflow what a run could not send, since the server was away; nothing twice."""
    from octnas.pipeline.run import sync_run

    for line in sync_run(run, overrides or ()):
        typer.echo(line)


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
