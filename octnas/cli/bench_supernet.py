"""``octnas bench --supernet``: training steps per second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from octnas.measure.steps import StepBenchResult


def bench_steps(
    experiment: Path,
    overrides: Sequence[str],
    *,
    batch_size: int,
    device: str,
    precision: str,
    threads: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Time the supernet's training steps of the sampled strategies, and the vanilla network's.

    Args:
        experiment: file of the experiment.
        overrides: ``section.key=value``.
        batch_size: 0 for the experiment's.
        device, precision, threads, repeats: see `octnas.measure.steps.StepBenchSettings`.
        as_json: instead of a table.
    """
    from octnas.measure.steps import StepBenchSettings
    from octnas.pipeline.bench_supernet import bench_supernet
    from octnas.pipeline.opening import load_experiment

    _, config = load_experiment(experiment, overrides)
    settings = StepBenchSettings(
        batch_size=batch_size or config.supernet.recipe.batch_size,
        device=device,
        precision=precision,
        threads=threads,
        repeats=repeats,
    )
    found = bench_supernet(config, settings)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)


def _print(found: "StepBenchResult") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 100)
    settings = found.settings
    console.print(
        f"training steps of {settings.batch_size} images, {settings.device}, "
        f"{settings.precision}, threads: {settings.threads or 'any'}, medians of "
        f"{settings.repeats} × {settings.steps} steps"
    )
    columns = ("", "networks a step", "steps/s", "images/s", "spread", "time", "95 %")
    table = Table(*columns)
    for row in found.rows:
        table.add_row(
            row.what,
            f"{row.networks:g}",
            f"{row.steps_per_second:.3g}",
            f"{row.images_per_second:,.4g}",
            f"{row.spread:.1%}",
            f"{row.time.value:.3f}",
            f"{row.time.low:.3f}–{row.time.high:.3f}",
        )
    console.print(table)
