"""What is exported and what it must agree with, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from octnas.errors import require
from octnas.settings import LATER

Format = Literal["timm", "onnx", "openvino", "pt2", "tensorrt"]
Precision = Literal["fp32", "fp16", "int8"]

PRECISIONS: Mapping[str, tuple[Precision, ...]] = MappingProxyType(
    {
        "timm": ("fp32",),
        "onnx": ("fp32", "fp16", "int8"),
        "openvino": ("fp32", "fp16", "int8"),
        "pt2": ("fp32",),
        "tensorrt": ("fp32", "fp16", "int8"),
    }
)
"""In which precisions each format is written."""


@dataclass(frozen=True)
class Tolerance:
    """How far an exported network may be from its source.

    Attributes:
        difference: largest difference of a logit, as a share of the image's largest logit.
        agreement: least share of the images for which both answer with the same class.
    """

    difference: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What becomes of every retrained network.

    Attributes:
        formats: ``timm`` (a folder), ``onnx``, ``openvino``, ``pt2`` (of ``torch.export``),
            ``tensorrt`` (an engine for the GPU of this machine).
        precisions: ``fp32``, ``fp16``, ``int8``, for the formats that have several.
        val_images: on so many images of the val part, evenly spread, every exported network is
            compared with its source; 0 for all.
        calibration_images: so many of the training part, by which int8 is calibrated.
        int8_agreement: a network in int8 is refused if it answers otherwise than its source on
            more than the rest of the images.
        data_license: licence of the images, for the model card; empty for unknown.
    """

    formats: tuple[Format, ...] = field(default=("timm",), metadata=LATER)
    precisions: tuple[Precision, ...] = field(default=("fp32", "fp16", "int8"), metadata=LATER)
    val_images: int = field(default=1000, metadata=LATER)
    calibration_images: int = field(default=512, metadata=LATER)
    int8_agreement: float = field(default=0.9, metadata=LATER)
    data_license: str = field(default="", metadata=LATER)

    def __post_init__(self) -> None:
        for key, allowed in (("formats", tuple(PRECISIONS)), ("precisions", PRECISIONS["onnx"])):
            found = getattr(self, key)
            fits = bool(found) and set(found) <= set(allowed) and len(set(found)) == len(found)
            require(fits, key, found, f"one or more of {', '.join(allowed)}, each once")
        require(self.val_images >= 0, "val_images", self.val_images, "0 or more")
        images = self.calibration_images
        require(images >= 1, "calibration_images", images, "1 or more")
        require(0 <= self.int8_agreement <= 1, "int8_agreement", self.int8_agreement, "0 to 1")

    @property
    def variants(self) -> tuple[tuple[Format, Precision], ...]:
        """What is written: each format in the precisions that are asked for, if it has several."""
        return tuple(
            (name, precision)
            for name in self.formats
            for precision in PRECISIONS[name]
            if precision in self.precisions or len(PRECISIONS[name]) == 1
        )

    def tolerance(self, precision: Precision) -> Tolerance:
        """How far an exported network of a precision may be from its source.

        In fp32 only the order of sums differs; fp16 has 11 significant bits; int8 changes the
        logits of an uncertain image by as much as they are, so that its answers are what counts.
        """
        return {
            "fp32": Tolerance(1e-3, 0.999),
            "fp16": Tolerance(0.05, 0.99),
            "int8": Tolerance(1.0, self.int8_agreement),
        }[precision]
