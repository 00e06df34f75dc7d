"""``octnas bench``: octave networks, data loading and supernet training, timed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from octnas.cli.run import NOTHING, Overrides, RichProgress, stopped_with_a_line, wide_console
from octnas.errors import ConfigError, SettingError
from octnas.runtime.progress import Quiet

if TYPE_CHECKING:
    from octnas.measure.bench import BenchResult
    from octnas.measure.bench_data import DataBenchResult
    from octnas.measure.settings import AlphaChoice
    from octnas.pipeline.bench import StepBenchResult

BATCHES = "1,8"


@stopped_with_a_line(NOTHING)
def bench(
    model: Annotated[str, typer.Option(help="Name of a timm ResNet.")] = "resnet50",
    alphas: Annotated[
        str,
        typer.Option(
            help="α by the paper's rule, separated by commas; or α by stage: 0.25/0.125/0.125."
        ),
    ] = "0.125,0.25,0.5,0.75",
    batch: Annotated[
        str,
        typer.Option(
            help="Batch sizes, separated by commas; default: 64 with --data, the experiment's with "
            "--supernet."
        ),
    ] = BATCHES,
    backends: Annotated[
        str,
        typer.Option(
            help="eager, compile, onnxruntime and openvino, separated by commas; default: those "
            "installed except compile, which takes minutes. Training, bfloat16 and other devices "
            "than the CPU support eager only.",
            show_default=False,
        ),
    ] = "",
    mode: Annotated[str, typer.Option(help="inference or training.")] = "inference",
    device: Annotated[str, typer.Option(help="A torch device, such as cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is the backend's default.")] = 1,
    input_size: Annotated[int, typer.Option(help="Height and width of the images.")] = 224,
    channel_multiple: Annotated[
        int, typer.Option(help="Round low channels down to a multiple of this.", min=1)
    ] = 1,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Timings of each network; default: 20, or 7 with --data.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Instead time data loading of this experiment, from files and from the cache, "
            "with the first batch size.",
            show_default=False,
        ),
    ] = None,
    supernet: Annotated[
        Path | None,
        typer.Option(
            help="Instead time the training steps of this experiment's supernet for every "
            "sampling strategy, against the vanilla network's, with the first batch size.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time octave networks against the vanilla one; or data loading; or supernet training."""
    if data is not None and supernet is not None:
        raise SettingError("supernet", str(supernet), "one of --data and --supernet")
    found: Any
    if data is not None or supernet is not None:
        common: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        if repeats is not None:
            common["repeats"] = repeats
        if data is not None:
            found, show = _bench_data(data, overrides or (), _first_batch(batch), common, as_json)
        else:
            assert supernet is not None
            found, show = _bench_steps(supernet, overrides or (), _first_batch(batch), common)
        _output(found, show, as_json)
        return
    from octnas.measure.backends import installed_backends
    from octnas.measure.bench import bench as run_bench
    from octnas.measure.settings import BenchSettings

    takes_all = (mode, device, precision) == ("inference", "cpu", "float32")
    wanted = _list(backends) or (installed_backends() if takes_all else ("eager",))
    settings = BenchSettings(
        model=model,
        input_size=input_size,
        alphas={text: _alpha(text) for text in _list(alphas)},
        channel_multiple=channel_multiple,
        batches=tuple(_whole_number(text) for text in _list(batch)),
        backends=wanted,
        mode=mode,
        device=device,
        precision=precision,
        threads=threads,
        repeats=20 if repeats is None else repeats,
    )
    found = run_bench(settings, log=lambda line: typer.echo(line, err=True))
    _output(found, lambda: _print(found), as_json)


def _output(found: Any, show: Callable[[], None], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show()


def _first_batch(batches: str) -> int:
    """The first batch size; 0 for the default."""
    return 0 if batches == BATCHES else _whole_number((_list(batches) or (batches,))[0])


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise SettingError("batch", text, "whole numbers, separated by commas")
    return int(text)


def _alpha(text: str) -> "AlphaChoice":
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if not numbers or not all(0.0 <= number <= 1.0 for number in numbers):
        raise SettingError("alphas", text, "numbers from 0 to 1, or such as 0.25/0.125/0.125")
    if len(numbers) == 1:
        return numbers[0]
    return {f"layer{stage}*": number for stage, number in enumerate(numbers, start=1)}


def _print(found: "BenchResult") -> None:
    console = wide_console(118)
    settings = found.settings
    console.print(
        f"{settings.model}, {settings.input_size} pixels, {settings.mode}, {settings.precision}, "
        f"{found.environment['device']}, threads: {settings.threads or 'any'}, medians of "
        f"{settings.repeats}"
    )
    training = settings.mode == "training"
    columns = ["batch", "backend", "α", "ms", "spread", "time", "95 %", "MACs", "time / MACs"]
    table = Table(*columns, *(["kept for backward"] if training else []))
    for row in found.rows:
        cells = [
            str(row.batch),
            row.backend,
            row.alpha,
            f"{row.milliseconds:.1f}",
            f"{row.spread:.1%}",
            f"{row.latency_ratio:.3f}{' ?' if row.undecided else ''}",
            f"{row.latency_low:.3f}–{row.latency_high:.3f}",
            f"{row.macs_ratio:.3f}",
            f"{row.quotient:.3f}",
        ]
        if row.kept_ratio is not None and row.kept_bytes is not None:
            cells.append(f"{sum(row.kept_bytes.values()) / 1e6:.0f} MB ({row.kept_ratio:.3f})")
        table.add_row(*cells)
    console.print(table)
    for best in found.best:
        verdict = "faster" if best.ratio.value < 1 else "slower"
        if best.ratio.undecided:
            verdict = "no difference can be seen: the machine is too noisy"
        console.print(
            f"batch {best.batch}, α {best.alpha}: best octave ({best.octave_backend}) against best "
            f"vanilla ({best.vanilla_backend}): {best.ratio.value:.3f} of the time "
            f"({best.ratio.low:.3f}–{best.ratio.high:.3f}) at {best.macs_ratio:.3f} of the MACs: "
            f"{verdict}"
        )
    if any(row.undecided for row in found.rows):
        console.print("?: the machine is too noisy to tell which of the two is faster.")


def _bench_data(
    experiment: Path,
    overrides: Sequence[str],
    batch_size: int,
    common: Mapping[str, Any],
    as_json: bool,
) -> tuple["DataBenchResult", Callable[[], None]]:
    from octnas.data.settings import ImagesSettings
    from octnas.measure.bench_data import DataBenchSettings, bench_data
    from octnas.pipeline.run import load_experiment
    from octnas.pipeline.space import space_of

    settings = DataBenchSettings(**{"repeats": 7, **common}, batch_size=batch_size or 64)
    _, config = load_experiment(experiment, overrides)
    if not isinstance(config.data, ImagesSettings):
        raise ConfigError(
            f"{experiment}: data.source: found {config.data.source}, which is generated in memory; "
            "allowed: images on disk"
        )
    progress = Quiet(lambda line: typer.echo(line, err=True)) if as_json else RichProgress()
    found = bench_data(config.data, lambda n: space_of(config, n).uniform(0.0), settings, progress)
    return found, lambda: _print_images(found)


def _print_images(found: "DataBenchResult") -> None:
    console = wide_console()
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
        f"the cache is {faster.value:.1f} times as fast as files "
        f"({faster.low:.1f}–{faster.high:.1f}); a training step fed from it takes "
        f"{held.value:.3f} of the time of one without a loader ({held.low:.3f}–{held.high:.3f})"
    )


def _bench_steps(
    experiment: Path, overrides: Sequence[str], batch_size: int, common: Mapping[str, Any]
) -> tuple["StepBenchResult", Callable[[], None]]:
    from octnas.pipeline.bench import StepBenchSettings, bench_supernet
    from octnas.pipeline.run import load_experiment

    _, config = load_experiment(experiment, overrides)
    batch_size = batch_size or config.supernet.recipe.batch_size
    found = bench_supernet(config, StepBenchSettings(**common, batch_size=batch_size))
    return found, lambda: _print_steps(found)


def _print_steps(found: "StepBenchResult") -> None:
    console = wide_console(100)
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
