"""The commands that run an experiment, whole or stage by stage, and what all commands share.

Their common options, how a command ends on Ctrl-C, and progress bars in a terminal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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

from octnas.errors import ConfigError
from octnas.runtime.directory import WHOLE_RUN
from octnas.runtime.signals import Stopped, last_signal, stoppable

if TYPE_CHECKING:
    from octnas.pipeline.run import Run

GOES_ON = "the same command resumes from here"
NOTHING = "nothing is kept"


@contextmanager
def stopped_with_a_line(kept: str) -> Iterator[None]:
    """Print a line after Ctrl-C or another signal, and exit with the shell's code for it.

    Args:
        kept: the end of the line: what is kept, or how to resume.
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
        help="A YAML file, or the directory of an earlier run; default: the shipped digits.yaml.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; can be repeated."),
]


def _folder(text: str) -> Path:
    """Refuse an empty path, which would be the working directory."""
    if not text:
        raise ConfigError("--run-dir: found '', allowed: a folder; or leave the option out")
    return Path(text)


RunDir = Annotated[
    Path | None,
    typer.Option(parser=_folder, metavar="PATH", help="Run directory; default: runs/NAME."),
]
Fresh = Annotated[
    str | None,
    typer.Option(metavar="STAGE", help="Redo a stage and all stages that depend on it."),
]


def _print_places(run: "Run") -> None:
    directory = run.directory.path.resolve()
    typer.echo(f"\nReport:    {directory / 'report' / 'index.html'}")
    typer.echo(f"Table:     {directory / 'report' / 'networks.csv'}")
    typer.echo(f"Networks:  {directory / 'export'}")
    if command := run.tracker.view_command():
        typer.echo(f"MLflow:    {command}")


def _print_ranking(run: "Run") -> None:
    from octnas.pipeline.ranking import table

    typer.echo(table(run))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    add = partial(_add_stages, app)
    add(
        "run",
        "Run a whole experiment: supernet, search, retraining, export and report.",
        WHOLE_RUN,
        _print_places,
    )
    app.command()(compress)
    add("data", "Check every image, choose the subset and its parts, and build the cache.")
    add("original", "Train the network that the run begins with; see the section original.")
    app.command()(supernet)
    add("truth", "Train the ground truth of `octnas rank`; share it with ranking.truth_from.")
    add(
        "rank",
        "Check how well the scores rank: train some architectures and compare.",
        ("supernet", "truth", "rank"),
        _print_ranking,
    )
    app.command()(search)
    add("retrain", "Train the chosen networks and the baselines.")


def compress(
    weights: Annotated[
        str,
        typer.Argument(
            help="The trained network: a file with timm's keys, a folder that timm "
            "exported, or timm for timm's own weights of --model."
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Your images: train/CLASS and val/CLASS.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="timm's name of the network; a folder says it.")
    ] = "",
    budgets: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            help="MACs as a share of the network's; repeat for several networks. Default: 0.6, or "
            "none with another bound.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Activation memory, as a share of the network's.")
    ] = None,
    peak: Annotated[
        float | None, typer.Option(help="Peak memory, as a share of the network's.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(help="Latency predicted by --table, as a share of the network's."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Latency table that `octnas latency` measured."),
    ] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Make a trained ResNet cheaper: sort its channels, search α, fine-tune, export and report."""
    from octnas.pipeline.minimal import minimal_experiment, read_trained
    from octnas.pipeline.run import write_experiment

    if latency is not None and table is None:
        raise ConfigError(
            "--latency: needs a table; measure one with `octnas latency`, see --table"
        )
    shares = {"activation_share": memory, "latency_share": latency, "peak_share": peak}
    bounds = {key: share for key, share in shares.items() if share is not None}
    macs = [{"share": share} for share in budgets or ([] if bounds else [0.6])]
    with stopped_with_a_line(NOTHING):
        found = minimal_experiment(
            data,
            read_trained(weights, model),
            [{**one, **bounds} for one in macs or [{}]],
            table,
        )
    for problem in found.problems:
        typer.echo(f"problem  {problem}; remove it or add --set data.on_error=skip")
    run_dir = run_dir or Path("runs") / found.name
    experiment = write_experiment(run_dir, found.text)
    typer.echo(f"written  {experiment}")
    _print_places(carry_out(experiment, overrides, run_dir, fresh, WHOLE_RUN))


def _add_stages(
    app: typer.Typer,
    name: str,
    text: str,
    stages: tuple[str, ...] = (),
    after: Callable[["Run"], None] = lambda _: None,
) -> None:
    """Add a command that runs some stages; by default the one of its name."""

    @app.command(name, help=text)
    def command(
        experiment: Experiment = None,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        fresh: Fresh = None,
    ) -> None:
        after(carry_out(experiment, overrides, run_dir, fresh, stages or (name,)))


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
            help="Number of training processes; same as --set supernet.processes=N.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train the supernet."""
    own = [] if processes is None else [f"supernet.processes={processes}"]
    carry_out(experiment, [*(overrides or ()), *own], run_dir, fresh, ("supernet",))


def search(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Evaluate on a running Ray cluster, auto or HOST:PORT; same as --set "
            "search.executor=ray --set ray.address=…",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Search with the trained supernet."""
    own = [] if address is None else ["search.executor=ray", f"ray.address={address}"]
    carry_out(experiment, [*(overrides or ()), *own], run_dir, fresh, ("search",))


def carry_out(
    experiment: Path | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    fresh: str | None,
    stages: tuple[str, ...],
) -> "Run":
    """Run some stages."""
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
    """Open an experiment, by default the shipped digits; see `octnas.pipeline.run.open_run`."""
    with stopped_with_a_line("the same command, without --fresh, resumes from here"):
        from octnas.config import default_experiment
        from octnas.pipeline.run import open_run

        with open_run(
            experiment or default_experiment(),
            overrides=overrides or (),
            run_dir=run_dir,
            fresh=fresh,
            stages=stages,
            progress=RichProgress(),
        ) as opened:
            yield opened


def wide_console(columns: int = 0) -> Console:
    """A console that is at least ``columns`` wide, for tables."""
    console = Console(highlight=False)
    console.width = max(console.width, columns)
    return console


class RichProgress:
    """Progress bars by rich; only their last state is printed if the output is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def say(self, line: str) -> None:
        """See `octnas.runtime.progress.Progress.say`."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
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
