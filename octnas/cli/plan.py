"""``octnas plan``: time, memory and disk that a run will need."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from octnas.cli.run import (
    NOTHING,
    Experiment,
    Overrides,
    RunDir,
    stopped_with_a_line,
    wide_console,
)

if TYPE_CHECKING:
    from octnas.pipeline.estimate import Plan, StageNeeds


@stopped_with_a_line(NOTHING)
def plan(
    experiment: Experiment = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    steps: Annotated[int, typer.Option(help="Steps to time for each kind of work.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a few steps and estimate hours, memory and disk of the whole run; writes nothing."""
    from octnas.config import default_experiment
    from octnas.pipeline.plan import plan_run

    path = experiment or default_experiment()
    found = plan_run(path, tuple(overrides or ()), run_dir=run_dir, steps=steps)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)


def _print(plan: "Plan") -> None:
    console = wide_console(100)
    machine = plan.machine
    console.print(f"{plan.name} on {machine.device}: {machine.name}, {machine.cores} cores")
    counts = ", ".join(f"{count:,} {part}" for part, count in plan.images.items())
    console.print(f"images (from {plan.counted}): {counts}")
    if plan.original:
        console.print(plan.original, soft_wrap=True)
    times = ", ".join(f"{what} {1e3 * s:,.3g} ms" for what, s in plan.measured.items() if s)
    console.print(f"timed: {times}")
    gpu = machine.device != "cpu"
    hours = ("CPU-hours", "GPU-hours") if gpu else ("CPU-hours",)
    memory = ("memory", "GPU memory") if gpu else ("memory",)
    table = Table("stage", "wall hours", *hours, *memory, "disk", "while running")
    for stage in plan.stages:
        table.add_row(*_row(stage, gpu))
    table.add_section()
    table.add_row(*_row(plan.total, gpu))
    console.print(table)
    for note in plan.notes:
        console.print(note)


def _row(stage: "StageNeeds", gpu: bool) -> list[str]:
    if stage.done and stage.stage != "total":
        nothing = ["–"] * (4 if gpu else 2)
        return [stage.stage, "finished", *nothing, _bytes(stage.disk), "–"]
    hours = [stage.wall_hours, stage.cpu_hours, *([stage.gpu_hours] if gpu else [])]
    sizes = [stage.memory, *([stage.gpu_memory] if gpu else []), stage.disk]
    scratch = f"+ {_bytes(stage.scratch)}" if stage.scratch else "–"
    return [stage.stage, *map(_hours, hours), *map(_bytes, sizes), scratch]


def _hours(hours: float) -> str:
    return "< 0.01" if 0 < hours < 0.01 else f"{hours:,.3g}"


def _bytes(size: int) -> str:
    if not size:
        return "–"
    return f"{size / 1e9:,.1f} GB" if size >= 5e7 else f"{size / 1e6:,.2g} MB"
