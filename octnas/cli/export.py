"""``octnas export``: retrained networks for timm, ONNX Runtime, OpenVINO, TensorRT and torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from octnas.cli.run import (
    Experiment,
    Fresh,
    Overrides,
    RunDir,
    carry_out,
    opened_for,
    wide_console,
)
from octnas.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from octnas.export.formats import Outcome
    from octnas.pipeline.run import Run
    from octnas.results.networks import Retrained


Identity = Annotated[
    str | None,
    typer.Option(help="Only the network whose id starts with this.", metavar="ID"),
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Only the searched network of a budget: its name, or a share of the vanilla "
        "network's MACs, such as 0.5x.",
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        help="Formats, separated by commas: timm, onnx, openvino, pt2, tensorrt; default: "
        "export.formats.",
    ),
]
Precisions = Annotated[
    str | None,
    typer.Option(
        help="Precisions, separated by commas: fp32, fp16, int8; default: export.precisions.",
    ),
]
ValImages = Annotated[
    int | None,
    typer.Option(help="Val images to check each export on, 0 for all; default: export.val_images."),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option(help="Images to calibrate int8 on; default: export.calibration_images."),
]
Int8Agreement = Annotated[
    float | None,
    typer.Option(
        help="Smallest share of images for which int8 must predict the source's class; default: "
        "export.int8_agreement.",
    ),
]
DataLicense = Annotated[
    str | None,
    typer.Option(help="License of the images, for the model card; default: export.data_license."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the export; default: RUN/export/NAME.", show_default=False),
]


def export(
    experiment: Experiment = None,
    architecture: Identity = None,
    budget: Budget = None,
    to: Formats = None,
    precision: Precisions = None,
    val_images: ValImages = None,
    calibration_images: CalibrationImages = None,
    int8_agreement: Int8Agreement = None,
    data_license: DataLicense = None,
    out: Out = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    fresh: Fresh = None,
) -> None:
    """Export retrained networks; without options, all of them with the experiment's settings."""
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
        raise ConfigError(
            "octnas export: --fresh redoes all networks; leave it out, or the other options"
        )
    with opened_for(experiment, overrides, run_dir, None, ("export",)) as run:
        from dataclasses import replace

        from octnas.export.formats import check_installed
        from octnas.pipeline.export import export_some, read_finished_results

        settings = replace(run.config.export, **changed)  # type: ignore[arg-type]
        check_installed(settings)
        chosen = _choose(run, read_finished_results(run), architecture, budget)
        written = export_some(run, chosen, settings, out)
    for folder, found in written.items():
        _print(folder, found)
    if refused := [line for found in written.values() for line in found.refused]:
        raise ExportError("\n".join(refused))


def _list(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _choose(
    run: "Run", results: "tuple[Retrained, ...]", architecture: str | None, budget: str | None
) -> "list[Retrained]":
    """The network that the options ask for; every network without them."""
    from octnas.pipeline.export import by_architecture, by_budget

    if architecture is not None and budget is not None:
        raise ConfigError("octnas export: give one of --architecture and --budget")
    if architecture is not None:
        return [by_architecture(results, architecture)]
    if budget is not None:
        return [by_budget(results, budget, run.space.vanilla_macs)]
    return list(results)


def _print(folder: Path, found: "Outcome") -> None:
    console = wide_console(120)
    columns = ("format", "precision", "MB", "MACs", "difference", "agreement", "top-1", "source's")
    table = Table(*columns)
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
            f"on {found.variants[0].comparison.images:,} val images; difference: the largest "
            "difference of a logit, relative to the largest logit of its image"
        )
    typer.echo(str(folder))
