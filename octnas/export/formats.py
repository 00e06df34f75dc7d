"""The formats that a network is exported in, and one network in several of them.

A program of ``torch.export``: it needs torch to run, and nothing else.
"""

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
from octnas.export.macs import moved_macs, program_macs
from octnas.export.onnx_file import export_onnx, export_openvino
from octnas.export.record import Variant, read_variants, remove, write_record
from octnas.export.settings import ExportSettings, Format, Precision
from octnas.export.source import Exported, Original, Source, read_original
from octnas.export.tensorrt_engine import export_tensorrt
from octnas.export.timm_folder import export_timm
from octnas.io.files import DRAFT, write_text
from octnas.nn.load import ARCHITECTURE_FILE

FILE = "model.pt2"


def _load(file: Path) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        # Of torch 2.11, about the bytes that it has read itself.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(file)


def export_pt2(original: Original, precision: str, folder: Path) -> Exported:  # noqa: ARG001
    """Write a program for any number of images at a time, batch norms folded, kernels split."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        original.deployed, (original.example,), dynamic_shapes=({0: batch},)
    )
    for node in program.graph.nodes:
        # With the paths of this machine.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, folder / FILE)
    written = _load(folder / FILE)
    module = written.module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return Exported((FILE,), run, program_macs(written))


FORMATS: Mapping[Format, Callable[[Original, str, Path], Exported]] = {
    "timm": export_timm,
    "onnx": export_onnx,
    "openvino": export_openvino,
    "pt2": export_pt2,
    "tensorrt": export_tensorrt,
}
"""What writes each format: the network, its precision, and the folder for the files."""

_NEEDS: Mapping[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "tensorrt": ("onnx", "onnxscript", "onnxruntime", "tensorrt"),
}

_BATCH = 32


def check_installed(settings: ExportSettings) -> None:
    """Refuse a format whose libraries are not installed.

    Raises:
        ExportError: naming them and what to install.
    """
    for name in settings.formats:
        if missing := [need for need in _NEEDS.get(name, ()) if find_spec(need) is None]:
            what = "tensorrt" if missing == ["tensorrt"] else '"octnas[export]"'
            raise ExportError(
                f"format {name}: {', '.join(missing)}: not installed; pip install {what}, or "
                "leave the format out"
            )


@dataclass(frozen=True)
class Outcome:
    """What came of exporting one network.

    Attributes:
        variants: what was written now.
        refused: a line for each variant that is not its source, and was not kept.
    """

    variants: tuple[Variant, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class _Measure:
    """What every variant is held against."""

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
    """Write a network in several formats, each held against its source on real images.

    What the folder holds of the same weights in other formats stays. A variant that is refused
    is removed; the others are written all the same.

    Args:
        source: the network.
        images: of its data set, on the CPU.
        settings: formats, precisions, images.
        folder: gets the files, ``architecture.json``, ``export.json`` and ``README.md``.
        on_variant: called with the name of each variant when it is done.

    Raises:
        ExportError: a format whose libraries are not installed, or a network whose logits are
            all but zero.
    """
    check_installed(settings)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {variant.key: variant for variant in read_variants(source, folder)}
    written: list[Variant] = []
    refused: list[str] = []
    with TemporaryDirectory(dir=folder, prefix=f".export{DRAFT}") as scratch:
        calibration = images.batches("train", _BATCH, settings.calibration_images)
        original = read_original(source, calibration, Path(scratch))
        batches = images.batches("val", _BATCH, settings.val_images)
        moved = moved_macs(original.deployed, original.example)
        expected = answers(original.network, batches)
        measure = _Measure(settings, batches, expected, source.network.cost.macs + moved)
        for key in settings.variants:
            if key in kept:
                remove(kept.pop(key), folder)
            try:
                written.append(_export(original, *key, measure, folder))
            except ExportError as error:
                refused.append(f"{source.network.name}: {key[0]} {key[1]}: {error}")
            on_variant(" ".join(key))
    variants = [*kept.values(), *written]
    source.network.architecture.save(folder / ARCHITECTURE_FILE)
    write_record(source, moved, variants, folder)
    write_text(folder / CARD_FILE, model_card(source, moved, variants))
    return Outcome(tuple(written), tuple(refused))


def _export(
    original: Original, name: Format, precision: Precision, measure: _Measure, folder: Path
) -> Variant:
    """Write one variant beside its place, check it, and put it there."""
    with TemporaryDirectory(dir=original.scratch) as beside:
        exported = FORMATS[name](original, precision, Path(beside))
        if exported.macs not in (None, measure.macs):
            raise ExportError(
                f"its graph has {exported.macs:,} MACs, the architecture comes to {measure.macs:,}"
            )
        comparison = compare(exported.run, measure.batches, measure.expected)
        tolerance = measure.settings.tolerance(precision)
        if reason := comparison.refusal(tolerance):
            raise ExportError(f"refused on the val images: {reason}{_advice(precision)}")
        files = [Path(beside) / file for file in exported.files]
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
        source_top1=measure.expected.top1,
    )


def _advice(precision: Precision) -> str:
    if precision != "int8":
        return ""
    return "; calibrate on more images, allow less agreement, or leave int8 out"
