"""``octnas bench --data``: images per second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from octnas.cli.progress import RichProgress
from octnas.errors import ConfigError
from octnas.progress import Quiet

if TYPE_CHECKING:
    from octnas.measure.data import DataBenchResult, DataBenchSettings


def bench_images(
    experiment: Path,
    overrides: Sequence[str],
    settings: "DataBenchSettings",
    *,
    as_json: bool,
) -> None:
    """Time the images of an experiment, and the training of its vanilla network on them."""
    from octnas.data.settings import ImagesSettings
    from octnas.measure.data import bench_data
    from octnas.pipeline.opening import load_experiment
    from octnas.pipeline.space import space_of

    _, config = load_experiment(experiment, overrides)
    if not isinstance(config.data, ImagesSettings):
        raise ConfigError(
            f"{experiment}: data.source: found {config.data.source}, which are made in memory; "
            "allowed: images on disk"
        )
    progress = Quiet(lambda line: typer.echo(line, err=True)) if as_json else RichProgress()
    found = bench_data(config.data, lambda n: space_of(config, n).uniform(0.0), settings, progress)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)


def _print(found: "DataBenchResult") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    settings = found.settings
    console.print(
        f"batches of {settings.batch_size}, {settings.device}, {settings.precision}, threads: "
        f"{settings.threads or 'any'}, medians of {settings.repeats}"
    )
    table = Table("", "images per second", "spread")
    for row in found.rows:
        table.add_row(row.what, f"{row.images_per_second:,.0f}", f"{row.spread:.1%}")
    console.print(table)
    faster, held = found.speed_up, found.held_back
    console.print(
        f"the cache delivers {faster.value:.1f} times what files do "
        f"({faster.low:.1f}–{faster.high:.1f}); a training step that it feeds takes "
        f"{held.value:.3f} of the time of one without a loader ({held.low:.3f}–{held.high:.3f})"
    )
