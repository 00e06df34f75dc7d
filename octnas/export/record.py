"""``export.json``: what an exported folder holds, where it comes from and how it was checked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octnas.errors import ExportError
from octnas.export.check import Comparison
from octnas.export.settings import Tolerance
from octnas.export.source import Source
from octnas.io.files import read_as, read_json, write_json

SCHEMA = 1
RECORD_FILE = "export.json"
_PACKAGES = ("octnas", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class Variant:
    """A checked export in one format and precision.

    Attributes:
        format: such as ``"onnx"``.
        precision: such as ``"int8"``.
        files: names within the folder; the first one is the one to load.
        bytes: size of all files.
        macs: counted on the exported graph, for one image; None without a graph.
        comparison: with its source.
        tolerance: the one it had to meet.
        source_top1: the source's top-1 accuracy on the same images, 0 to 1.
    """

    format: str
    precision: str
    files: tuple[str, ...]
    bytes: int
    macs: int | None
    comparison: Comparison
    tolerance: Tolerance
    source_top1: float

    @property
    def key(self) -> tuple[str, str]:
        """Format and precision, unique within a folder."""
        return self.format, self.precision

    @staticmethod
    def from_dict(document: dict[str, Any]) -> "Variant":
        """Read what `dataclasses.asdict` gave."""
        found = read_as(Variant, document)
        # `remove` deletes them: none may lie outside the folder.
        if wrong := [name for name in found.files if name != Path(name).name or name in ("", "..")]:
            raise ValueError(f"files: found {wrong[0]!r}, allowed: names within the folder")
        return found


@dataclass(frozen=True)
class _Record:
    """The part of a record that is read again."""

    id: str
    weights: Mapping[str, Any]
    variants: tuple[Variant, ...]

    def is_of(self, source: Source) -> bool:
        """Whether it is of this network with these weights."""
        own = source.network.architecture.id, source.weights_digest()
        return (self.id, self.weights.get("sha256")) == own


def write_record(source: Source, moved: int, variants: Sequence[Variant], folder: Path) -> None:
    """Write everything that is needed to rebuild the network, and what was measured.

    ``moved`` is that of `octnas.export.macs.moved_macs`, ``variants`` everything in the folder.
    """
    network = source.network
    document = {
        "schema": SCHEMA,
        "name": network.name,
        "id": network.architecture.id,
        "architecture": network.architecture.to_dict(),
        "cost": {**asdict(network.cost), "vanilla_macs": source.vanilla_macs},
        "macs_upsampled_first": moved,
        "class_names": list(source.class_names),
        "weights": {"sha256": source.weights_digest(), "seed": source.seed},
        "origin": source.origin and asdict(source.origin),
        "results": {str(run.seed): dict(run.metrics) for run in source.retrained.runs},
        "data": {
            **source.data,
            "preparation": dict(source.preparation),
            "license": source.data_license,
        },
        "variants": [asdict(variant) for variant in variants],
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    write_json(folder / RECORD_FILE, document)


def read_variants(source: Source, folder: Path) -> tuple[Variant, ...]:
    """What a folder holds of a source; variants of other weights are removed.

    Raises:
        RunDirectoryError: the record cannot be read or has an unknown schema version.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        return ()
    record = read_json(path, _Record, schema=SCHEMA)
    if not record.is_of(source):
        for variant in record.variants:
            remove(variant, folder)
        return ()
    return tuple(v for v in record.variants if all((folder / name).exists() for name in v.files))


def check_room(source: Source, folder: Path) -> None:
    """Refuse a folder that holds anything but an export of the same weights.

    Raises:
        ExportError: it does.
        RunDirectoryError: its record cannot be read or has an unknown schema version.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    path = folder / RECORD_FILE
    if not path.exists():
        raise ExportError(f"{folder}: holds other files; give a new or an empty folder")
    record = read_json(path, _Record, schema=SCHEMA)
    if not record.is_of(source):
        raise ExportError(
            f"{folder}: holds an export of {record.id} or of other weights, not of "
            f"{source.network.architecture.id}; give a new or an empty folder"
        )


def remove(variant: Variant, folder: Path) -> None:
    """Remove the files of a variant."""
    for name in variant.files:
        (folder / name).unlink(missing_ok=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
