"""``octnas report`` and ``octnas compare``: the results of runs, as pages and files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from octnas.cli.run import (
    Experiment,
    Overrides,
    RunDir,
    opened_for,
    stopped_with_a_line,
    wide_console,
)
from octnas.errors import ConfigError

_SECONDS = 30


def report(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    latency: Annotated[
        list[Path] | None,
        typer.Option(
            help="Latency table of another device, from `octnas latency`; can be repeated.",
            show_default=False,
        ),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Also draw the figures as PNG files, for report.md.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Keep the page up to date while the run continues elsewhere."),
    ] = False,
    seconds: Annotated[
        int, typer.Option(min=1, help="Seconds between updates of --watch.")
    ] = _SECONDS,
) -> None:
    """Rewrite the report from what has finished so far."""
    tables = tuple(latency or ())
    if watch:
        if png:
            raise ConfigError(
                "octnas report: --png cannot be combined with --watch, which writes the page only"
            )
        _watch(experiment, overrides, run_dir, tables, seconds)
        return
    from octnas.pipeline.stages import rewrite_report

    with opened_for(experiment, overrides, run_dir, None, ("report",)) as opened:
        rewrite_report(opened, tables=tables, png=png)


@stopped_with_a_line("the page stays as last written")
def _watch(
    experiment: Path | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    tables: tuple[Path, ...],
    seconds: int,
) -> None:
    """Update the page until the run is finished or the user stops it."""
    import time

    from octnas.pipeline.report import write_if_ready
    from octnas.pipeline.run import where

    path, said = where(experiment, overrides or (), run_dir), ""
    while True:
        state, finished = write_if_ready(path, overrides or (), tables, seconds)
        if state != said:
            typer.echo(state)
            said = state
        if finished:
            return
        time.sleep(seconds)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Output file.")] = Path("comparison.html"),
) -> None:
    """Overlay the fronts of several runs, and say which of them can be ranked."""
    from octnas.pipeline.report import compare_runs

    rows, differing = compare_runs(runs, out)
    console = wide_console(120)
    table = Table("run", "group", "hypervolume", "rank", "data", "recipe", "retrained")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
    typer.echo(f"settings that differ: {', '.join(differing) or 'none'}")
    typer.echo(str(out))
