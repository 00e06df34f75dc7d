"""One ONNX file: batch norms folded, kernels split, any number of images at a time."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from octnas.export.int8 import quantise
from octnas.export.macs import onnx_macs
from octnas.export.source import Exported, Original
from octnas.nn.onnx import save_onnx

FILES: Mapping[str, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_int8.onnx",
}
"""Names by precision."""


def export_onnx(original: Original, precision: str, folder: Path) -> Exported:
    """Write an ONNX file, to be run by ONNX Runtime.

    In all precisions images and logits are float32.
    """
    path = folder / FILES[precision]
    path.write_bytes(onnx_graph(original, precision).read_bytes())
    return Exported((path.name,), onnxruntime_run(path), onnx_macs(path))


def onnx_graph(original: Original, precision: str) -> Path:
    """The ONNX file in the scratch folder, which other formats are made from; written once."""
    path = original.scratch / FILES[precision]
    if not path.exists():
        _WRITE[precision](original, path)
    return path


def onnxruntime_run(path: Path) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime computes on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


class _Half(nn.Module):
    """A network that computes in float16, from and to float32.

    A converter of ONNX files would leave upsampling in float32, with a cast on each side of it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.half())
        return logits.float()


def _write_fp32(original: Original, path: Path) -> None:
    save_onnx(original.deployed, original.example, path, any_batch=True)


def _write_fp16(original: Original, path: Path) -> None:
    save_onnx(_Half(original.deployed).eval(), original.example, path, any_batch=True)


def _write_int8(original: Original, path: Path) -> None:
    quantise(onnx_graph(original, "fp32"), original.calibration, path)


_WRITE: Mapping[str, Callable[[Original, Path], None]] = {
    "fp32": _write_fp32,
    "fp16": _write_fp16,
    "int8": _write_int8,
}
