"""Export a network in several formats, each checked against its source."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from octnas.data.batches import Batches
from octnas.data.images import Images
from octnas.errors import ExportError
from octnas.export.card import CARD_FILE, model_card
from octnas.export.check import Answers, answers, compare
from octnas.export.engines import export_onnx, export_openvino, export_tensorrt
from octnas.export.macs import moved_macs, program_macs
from octnas.export.record import Variant, read_variants, remove, write_record
from octnas.export.settings import ExportSettings, Format, Precision
from octnas.export.source import Exported, Loaded, Source
from octnas.export.timm_folder import export_timm
from octnas.io.files import DRAFT, write_text
from octnas.nn.load import ARCHITECTURE_FILE

PT2_FILE = "model.pt2"
_BATCH = 32


def export_pt2(loaded: Loaded, precision: str, folder: Path) -> Exported:  # noqa: ARG001
    """Write a ``torch.export`` program for any batch size; it needs torch and nothing else."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(loaded.deployed, (loaded.example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    torch.export.save(program, folder / PT2_FILE)
    with warnings.catch_warnings():
        # torch 2.11 warns about a buffer that it has read itself.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        written = torch.export.load(folder / PT2_FILE)
    module = written.module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return Exported((PT2_FILE,), run, program_macs(written))


FORMATS: Mapping[Format, Callable[[Loaded, str, Path], Exported]] = {
    "timm": export_timm,
    "onnx": export_onnx,
    "openvino": export_openvino,
    "pt2": export_pt2,
    "tensorrt": export_tensorrt,
}
"""The function that writes a network in a precision into a folder, by format."""

_ONNX = ("onnx", "onnxscript", "onnxruntime")
_NEEDS: Mapping[Format, tuple[str, ...]] = {
    "onnx": _ONNX,
    "openvino": (*_ONNX, "openvino"),
    "tensorrt": (*_ONNX, "tensorrt"),
}


def check_installed(settings: ExportSettings) -> None:
    """Raise an `ExportError` for a format whose packages are not installed."""
    for name in settings.formats:
        if missing := [need for need in _NEEDS.get(name, ()) if find_spec(need) is None]:
            what = "tensorrt" if missing == ["tensorrt"] else '"octnas[export]"'
            raise ExportError(
                f"format {name}: {', '.join(missing)}: not installed; pip install {what}, or "
                "leave the format out"
            )


@dataclass(frozen=True)
class Outcome:
    """The variants that were written, and a line for each that was refused and not kept."""

    variants: tuple[Variant, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class _Reference:
    """What every variant is checked against."""

    settings: ExportSettings
    batches: Batches
    expected: Answers
    macs: int


def export_network(
    source: Source,
    images: Images,
    settings: ExportSettings,
    folder: Path,
    on_variant: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Export a network in several formats, each checked against its source on real images.

    Other variants of the same weights in the folder are kept. A variant that is refused is
    removed, and the others are written nevertheless.

    Args:
        source: the network.
        images: its data, on the CPU.
        settings: formats, precisions, numbers of images.
        folder: gets the files, ``architecture.json``, ``export.json`` and ``README.md``.
        on_variant: called with the name of each finished variant.

    Raises:
        ExportError: a package is not installed, or the network's logits are all but zero.
    """
    check_installed(settings)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {variant.key: variant for variant in read_variants(source, folder)}
    written: list[Variant] = []
    refused: list[str] = []
    with TemporaryDirectory(dir=folder, prefix=f".export{DRAFT}") as scratch:
        calibration = images.batches("train", _BATCH, settings.calibration_images)
        loaded = Loaded.read(source, calibration, Path(scratch))
        batches = images.batches("val", _BATCH, settings.val_images)
        moved = moved_macs(loaded.deployed, loaded.example)
        expected = answers(loaded.network, batches)
        reference = _Reference(settings, batches, expected, source.network.cost.macs + moved)
        for key in settings.variants:
            if key in kept:
                remove(kept.pop(key), folder)
            try:
                written.append(_export(loaded, *key, reference, folder))
            except ExportError as error:
                refused.append(f"{source.network.name}: {key[0]} {key[1]}: {error}")
            on_variant(" ".join(key))
    variants = [*kept.values(), *written]
    source.network.architecture.save(folder / ARCHITECTURE_FILE)
    write_record(source, moved, variants, folder)
    write_text(folder / CARD_FILE, model_card(source, moved, variants))
    return Outcome(tuple(written), tuple(refused))


def _export(
    loaded: Loaded, name: Format, precision: Precision, reference: _Reference, folder: Path
) -> Variant:
    """Write one variant to a temporary folder, check it, and move it to ``folder``."""
    with TemporaryDirectory(dir=loaded.scratch) as temporary:
        exported = FORMATS[name](loaded, precision, Path(temporary))
        if exported.macs not in (None, reference.macs):
            raise ExportError(f"its graph has {exported.macs:,} MACs, expected: {reference.macs:,}")
        comparison = compare(exported.run, reference.batches, reference.expected)
        tolerance = reference.settings.tolerance(precision)
        if reason := comparison.refusal(tolerance):
            advice = "; calibrate on more images, lower int8_agreement, or leave int8 out"
            raise ExportError(
                f"refused on the val images: {reason}{advice if precision == 'int8' else ''}"
            )
        files = [Path(temporary) / file for file in exported.files]
        size = sum(file.stat().st_size for file in files)
        for file in files:
            file.replace(folder / file.name)
    return Variant(
        format=name,
        precision=precision,
        files=exported.files,
        bytes=size,
        macs=exported.macs,
        comparison=comparison,
        tolerance=tolerance,
        source_top1=reference.expected.top1,
    )
