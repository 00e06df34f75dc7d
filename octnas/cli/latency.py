"""``octnas latency``: latency tables of search spaces, by device."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from octnas.cli.run import GOES_ON, NOTHING, Overrides, stopped_with_a_line, wide_console

if TYPE_CHECKING:
    from octnas.space.latency import LatencyTable

_MEASURE = "measure"
Experiment = Annotated[
    Path, typer.Argument(help="A YAML file, or the directory of a run.", show_default=False)
]
Name = Annotated[
    str, typer.Option(help="Device name; default: this machine's name.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Output file; default: latency/DEVICE-BACKEND-PRECISION-batch-N-threads-N.json."
    ),
]
Backend = Annotated[str, typer.Option(help="eager, compile, onnxruntime or openvino.")]
Device = Annotated[str, typer.Option(help="A torch device, such as cuda.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 is the backend's default.")]
Batch = Annotated[int, typer.Option(help="Batch size.")]
Networks = Annotated[
    int, typer.Option(help="Whole networks over the whole range, to check predictions on.")
]
Narrow = Annotated[int, typer.Option(help="Further networks with nearly equal predictions.")]
Fit = Annotated[int, typer.Option(help="Whole networks to fit predictions to.")]


class _Group(TyperGroup):
    """Any first argument that is not a command is an experiment to measure."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [_MEASURE, *args]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        cls=_Group,
        no_args_is_help=True,
        help="Latency of a search space's architectures on a device: `octnas latency EXPERIMENT` "
        "measures a table on this machine.",
    )
    group.command(_MEASURE)(measure)
    group.command("pack")(pack)
    group.command("import")(import_answer)
    group.command("networks")(networks_of)
    app.add_typer(group, name="latency")


@stopped_with_a_line(GOES_ON)
def measure(
    experiment: Experiment,
    backend: Backend = "eager",
    device: Device = "cpu",
    precision: Precision = "float32",
    batch: Batch = 1,
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(help="Timings of each layer and network.")] = 20,
    networks: Networks = 20,
    narrow: Narrow = 20,
    fit: Fit = 60,
    name: Name = "",
    out: Out = None,
    overrides: Overrides = None,
) -> None:
    """Measure the layers of an experiment's search space, then whole networks, on this machine."""
    from octnas.measure.settings import LatencySettings
    from octnas.pipeline.latency import default_file, experiment_space, make_table

    settings = LatencySettings(
        name=name,
        backend=backend,
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        repeats=repeats,
        networks=networks,
        narrow=narrow,
        fit=fit,
    )
    space = experiment_space(experiment, tuple(overrides or ()))
    file = out or default_file(settings)
    log = lambda line: typer.echo(line, err=True)  # noqa: E731
    _print(make_table(space, settings, file, log), file)


@stopped_with_a_line(NOTHING)
def networks_of(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    backend: Backend = "eager",
    device: Device = "cpu",
    precision: Precision = "float32",
    batch: Batch = 1,
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(help="Timings of each network.")] = 100,
    name: Name = "",
) -> None:
    """Time every retrained network of a run, for its report: median and 95th percentile."""
    from octnas.measure.settings import LatencySettings
    from octnas.pipeline.network_latency import time_retrained
    from octnas.pipeline.run import locked, look_at_run

    settings = LatencySettings(
        name=name,
        backend=backend,
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        repeats=repeats,
    )
    looked_at = look_at_run(run)
    # With the run lock: another process on this run would distort the times.
    with locked(run, partial(typer.echo, err=True)):
        path, found = time_retrained(looked_at, settings)
    for identity, timing in found.measured.items():
        typer.echo(f"{identity}  {1e3 * timing.median:.3f} ms, 95 %: {1e3 * (timing.p95 or 0):.3f}")
    typer.echo(f"{path}\n`octnas report {run}` shows them")


@stopped_with_a_line(GOES_ON)
def pack(
    experiment: Experiment,
    folder: Annotated[Path, typer.Argument(help="Where to write.", show_default=False)],
    batch: Batch = 1,
    networks: Networks = 20,
    narrow: Narrow = 20,
    fit: Fit = 60,
    overrides: Overrides = None,
) -> None:
    """Write ONNX files, and a script that times them on a device without octnas."""
    from octnas.measure.pack import SCRIPT_FILE, write_pack
    from octnas.measure.settings import LatencySettings
    from octnas.pipeline.latency import experiment_space

    settings = LatencySettings(batch=batch, networks=networks, narrow=narrow, fit=fit)
    space = experiment_space(experiment, tuple(overrides or ()))
    write_pack(space, settings, folder, lambda line: typer.echo(line, err=True))
    typer.echo(
        f"Copy {folder} to the device, run `python {SCRIPT_FILE} --name NAME` there (numpy and "
        "onnxruntime), and bring answer.json back: `octnas latency import answer.json --out FILE`"
    )


def import_answer(
    answer: Annotated[Path, typer.Argument(help="answer.json, or its folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Output file.", show_default=False)],
) -> None:
    """Make a latency table from the times that a device measured with a pack."""
    from octnas.io.files import write_json
    from octnas.measure.pack import read_answer

    table = read_answer(answer)
    write_json(out, table.to_dict())
    _print(table, out)


def _print(table: "LatencyTable", file: Path) -> None:
    console = wide_console(100)
    console.print(
        f"{table.device}, {table.backend}, {table.precision}, batch {table.batch}, threads: "
        f"{table.threads or 'any'}; {len(table.layers)} layers, network = {table.factor:.3f} × "
        f"layers {table.constant * 1e3:+.3f} ms{', plus a time for each site' * bool(table.sites)}"
    )
    rows = Table("networks", "number", "range", "median error", "worst", "τ", "ρ", "τ of the noise")
    for what, found in table.quality.items():
        rows.add_row(
            what,
            str(found.networks),
            f"{found.width:.1%}",
            f"{found.error:.1%}",
            f"{found.worst:.1%}",
            *(_number(value) for value in (found.tau, found.rho, found.ceiling)),
        )
    console.print(rows)
    console.print(
        "range: of their predictions; τ of the noise: between times in even and in odd rounds.",
    )
    typer.echo(str(file))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
