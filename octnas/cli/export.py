"""``octnas export``: retrained networks for timm, ONNX Runtime, OpenVINO, TensorRT and torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octnas.cli.run import Experiment, Fresh, Overrides, RunDir, carry_out, opened_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octnas.export.formats import Outcome
    from octnas.export.settings import ExportSettings
    from octnas.pipeline.run import Run
    from octnas.results.networks import Retrained


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    experiment: Experiment = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="The network whose id begins so.", metavar="ID", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The searched network of a budget: its name, or a share of vanilla's MACs, 0.5x.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Of timm, onnx, openvino, pt2, tensorrt, separated by commas; by default "
            "export.formats.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of fp32, fp16, int8, separated by commas; by default export.precisions.",
            show_default=False,
        ),
    ] = None,
    val_images: Annotated[
        int | None,
        typer.Option(help="As export.val_images; 0 for all.", show_default=False),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(help="As export.calibration_images.", show_default=False)
    ] = None,
    int8_agreement: Annotated[
        float | None, typer.Option(help="As export.int8_agreement.", show_default=False)
    ] = None,
    data_license: Annotated[
        str | None,
        typer.Option(help="Of the images, for the model card.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; by default RUN/export/NAME.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Write retrained networks for others; by itself, every one as the experiment says."""
    given = {
        "formats": _list(to),
        "precisions": _list(precision),
        "val_images": val_images,
        "calibration_images": calibration_images,
        "int8_agreement": int8_agreement,
        "data_license": data_license,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed and architecture is None and budget is None and out is None:
        carry_out(experiment, overrides, run_dir, fresh, ("export",))
        return
    if fresh is not None:
        from octnas.errors import ConfigError

        raise ConfigError(
            "octnas export: --fresh does all networks anew; leave it out, or what is asked of one"
        )
    with opened_for(experiment, overrides, run_dir, None, ("export",)) as run:
        from octnas.export.formats import check_installed
        from octnas.pipeline.export import export_some, read_finished_results

        settings = _settings(run, changed)
        check_installed(settings)
        chosen = _choose(run, read_finished_results(run), architecture, budget)
        written = export_some(run, chosen, settings, out)
    _print_all(written)


def _print_all(written: "Mapping[Path, Outcome]") -> None:
    """What was written, by folder.

    Raises:
        ExportError: variants that were refused.
    """
    from octnas.errors import ExportError

    for folder, found in written.items():
        _print(folder, found)
    if refused := [line for found in written.values() for line in found.refused]:
        raise ExportError("\n".join(refused))


def _list(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _settings(run: "Run", changed: dict[str, Any]) -> "ExportSettings":
    from dataclasses import replace

    return replace(run.config.export, **changed)


def _choose(
    run: "Run",
    results: "tuple[Retrained, ...]",
    architecture: str | None,
    budget: str | None,
) -> "list[Retrained]":
    """What is meant; every network where nothing is said."""
    from octnas.errors import ConfigError
    from octnas.pipeline.export import by_architecture, by_budget

    if architecture is not None and budget is not None:
        raise ConfigError("octnas export: give one of --architecture and --budget")
    if architecture is not None:
        return [by_architecture(results, architecture)]
    if budget is not None:
        return [by_budget(results, budget, run.space.vanilla_macs)]
    return list(results)


def _print(folder: Path, found: "Outcome") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 120)
    table = Table("format", "precision", "MB", "MACs", "difference", "agreement", "top-1")
    table.add_column("source's")
    table.add_column("file", no_wrap=True)
    for variant in found.variants:
        compared = variant.comparison
        table.add_row(
            variant.format,
            variant.precision,
            f"{variant.bytes / 1e6:.2f}",
            "" if variant.macs is None else f"{variant.macs:,}",
            f"{compared.difference:.1e}",
            f"{compared.agreement:.2%}",
            f"{compared.top1:.2%}",
            f"{variant.source_top1:.2%}",
            variant.files[0],
        )
    if found.variants:
        console.print(table)
        console.print(
            f"on {found.variants[0].comparison.images:,} images of the val part; difference: the "
            "largest of a logit, as a share of the image's largest"
        )
    typer.echo(str(folder))
