"""The commands that carry out an experiment, whole or stage by stage.

How a command ends that a signal has stopped.

Progress bars in a terminal.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from octnas.runtime.signals import Stopped, last_signal, stoppable

if TYPE_CHECKING:
    from octnas.pipeline.run import Run

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
    for command in (run, data, supernet, truth, rank, search, retrain):
        app.command()(command)


def run(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Carry out a whole experiment: supernet, search, retraining, export and report."""
    from octnas.runtime.directory import WHOLE_RUN

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
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            "--workers",
            help="Processes that train together, as --set supernet.processes=N.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train the supernet."""
    own = [] if processes is None else [f"supernet.processes={processes}"]
    carry_out(experiment, [*(overrides or ()), *own], run_dir, fresh, ("supernet",))


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
    opened = carry_out(experiment, overrides, run_dir, fresh, ("supernet", "truth", "rank"))
    from octnas.pipeline.ranking import table

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
        from octnas.config import default_experiment
        from octnas.pipeline.run import own_run

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


class RichProgress:
    """Bars by rich; where the output is no terminal, only their last state is printed."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def say(self, line: str) -> None:
        """See `octnas.runtime.progress.Progress.say`."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator["_Bar"]:
        """See `octnas.runtime.progress.Progress.bar`."""
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _Bar(progress, progress.add_task(title, total=total, note=""))


class _Bar:
    """One bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """See `octnas.runtime.progress.Bar.advance`."""
        self._progress.advance(self._task, steps)
        if note:
            self._progress.update(self._task, note=note)
