"""Settings of exports, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from octnas.errors import require, require_at_least
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
"""The precisions that each format supports."""


@dataclass(frozen=True)
class Tolerance:
    """How much an exported network may differ from its source.

    Attributes:
        difference: the largest difference of a logit, relative to the largest logit of its image.
        agreement: the smallest share of images for which both predict the same class.
    """

    difference: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Section ``export`` of an experiment: how every retrained network is exported.

    Attributes:
        formats: one or more of ``timm`` (a folder), ``onnx``, ``openvino``, ``pt2`` (a
            ``torch.export`` program) and ``tensorrt`` (an engine for this machine's GPU).
        precisions: one or more of ``fp32``, ``fp16`` and ``int8``, for the formats that support
            several.
        val_images: the number of val images, evenly spread, on which every export is compared
            with its source; 0 for all.
        calibration_images: the number of training images that calibrate int8.
        int8_agreement: an int8 export is refused if it predicts the same class as its source for
            a smaller share of the images.
        data_license: license of the images, for the model card; empty for unknown.
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
        require_at_least(self, 0, "val_images")
        images = self.calibration_images
        require(images >= 1, "calibration_images", images, "1 or more")
        require(0 <= self.int8_agreement <= 1, "int8_agreement", self.int8_agreement, "0 to 1")

    @property
    def variants(self) -> tuple[tuple[Format, Precision], ...]:
        """Each format in each of the precisions, or in its only one."""
        return tuple(
            (name, precision)
            for name in self.formats
            for precision in PRECISIONS[name]
            if precision in self.precisions or len(PRECISIONS[name]) == 1
        )

    def tolerance(self, precision: Precision) -> Tolerance:
        """How much an export in a precision may differ from its source.

        In fp32 only the order of summation differs; fp16 has 11 significant bits; int8 may change
        the logits of an uncertain image by their own size, so its predictions count.
        """
        return {
            "fp32": Tolerance(1e-3, 0.999),
            "fp16": Tolerance(0.05, 0.99),
            "int8": Tolerance(1.0, self.int8_agreement),
        }[precision]
