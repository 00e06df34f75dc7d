"""The commands that carry out an experiment, whole or stage by stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octnas.cli.stops import stopped_with_a_line

if TYPE_CHECKING:
    from octnas.pipeline.opening import Run

Experiment = Annotated[
    Path | None,
    typer.Argument(
        help="A YAML file, or the directory of an earlier run; by default the shipped digits.yaml.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace a setting; may be repeated."),
]


def _folder(text: str) -> Path:
    """A folder that was named; the empty path would be the working directory."""
    if not text:
        from octnas.errors import ConfigError

        raise ConfigError("--run-dir: found '', allowed: a folder; or leave it out")
    return Path(text)


RunDir = Annotated[
    Path | None,
    typer.Option(parser=_folder, metavar="PATH", help="Where to write; by default runs/NAME."),
]
Fresh = Annotated[
    str | None,
    typer.Option(metavar="STAGE", help="Do a stage anew, and what depends on it."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, data, supernet, proxies, truth, rank, search, retrain):
        app.command()(command)


def run(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Carry out a whole experiment: supernet, search, retraining, export and report."""
    from octnas.run_directory import WHOLE_RUN

    opened = carry_out(experiment, overrides, run_dir, fresh, WHOLE_RUN)
    _say_where(opened)


def data(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Look at every image once, choose the subset and its parts, and build the cache."""
    carry_out(experiment, overrides, run_dir, fresh, ("data",))


def supernet(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that train together, as --set supernet.workers=N.", show_default=False
        ),
    ] = None,
) -> None:
    """Train the supernet."""
    own = [] if workers is None else [f"supernet.workers={workers}"]
    carry_out(experiment, [*(overrides or ()), *own], run_dir, fresh, ("supernet",))


def proxies(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Train some architectures for a few epochs: a second source of scores."""
    carry_out(experiment, overrides, run_dir, fresh, ("proxies",))


def truth(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Train the ground truth of `octnas rank`; other runs share it with ranking.truth_from."""
    carry_out(experiment, overrides, run_dir, fresh, ("truth",))


def rank(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Find out whether the scores rank: train some architectures from scratch and compare."""
    opened = carry_out(
        experiment, overrides, run_dir, fresh, ("supernet", "proxies", "truth", "rank")
    )
    from octnas.pipeline.rank import table

    typer.echo(table(opened))


def search(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Evaluate on a Ray cluster that runs there, auto or HOST:PORT, as --set "
            "search.executor=ray --set ray.address=…",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Search with a trained supernet."""
    own = [] if address is None else ["search.executor=ray", f"ray.address={address}"]
    carry_out(experiment, [*(overrides or ()), *own], run_dir, fresh, ("search",))


def retrain(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Retrain the chosen networks and the baselines from scratch."""
    carry_out(experiment, overrides, run_dir, fresh, ("retrain",))


def carry_out(
    experiment: Path | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    fresh: str | None,
    stages: tuple[str, ...],
) -> "Run":
    """Do some stages, and say how to go on if they are broken off."""
    with opened_for(experiment, overrides, run_dir, fresh, stages) as opened:
        from octnas.pipeline.stages import run_stages

        run_stages(opened, stages)
    return opened


@contextmanager
def opened_for(
    experiment: Path | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    fresh: str | None,
    stages: tuple[str, ...],
) -> Iterator["Run"]:
    """The experiment with its run directory, by default the shipped digits.

    Nobody else works on it within the block, and a signal ends it with a line.
    """
    with stopped_with_a_line("the same command, without --fresh, goes on from here"):
        from octnas.cli.progress import RichProgress
        from octnas.pipeline.owning import own_run
        from octnas.shipped import default_experiment

        with own_run(
            experiment or default_experiment(),
            overrides=overrides or (),
            run_dir=run_dir,
            fresh=fresh,
            stages=stages,
            progress=RichProgress(),
        ) as opened:
            yield opened


def _say_where(run: "Run") -> None:
    """The paths and commands to look at what was made."""
    directory = run.directory.path.resolve()
    typer.echo(f"\nReport:    {directory / 'report' / 'index.html'}")
    typer.echo(f"Table:     {directory / 'report' / 'networks.csv'}")
    typer.echo(f"Networks:  {directory / 'export'}")
    if command := run.tracker.view_command():
        typer.echo(f"MLflow:    {command}")
