"""One ONNX file: batch norms folded, kernels split, any number of images at a time.

ONNX files in int8, calibrated after training, by ONNX Runtime's quantisation.

OpenVINO's own files, from the ONNX file.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from octnas.data.batches import Batches
from octnas.export.macs import onnx_macs, openvino_macs
from octnas.export.source import Exported, Original
from octnas.nn.onnx import openvino_core, save_onnx

# What computes in int8. Residual sums, pooling and upsampling, which hold next to none of the
# arithmetic, stay in float32: quantising them too changed twice as many answers.
_QUANTISED = ["Conv", "Gemm"]


def quantise(source: Path, calibration: Batches, path: Path) -> None:
    """Write an ONNX file whose convolutions and classifier compute in int8.

    In the QDQ format with zero points of 0, which ONNX Runtime, OpenVINO and TensorRT read:
    weights by channel, activations by tensor within the range that the calibration images span.

    Args:
        source: an ONNX file in float32.
        calibration: batches of training images.
        path: where to write.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "model.onnx"
        # Its optimisation would take the names that weights are known by.
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True},
        )


class _Reader:
    """Calibration images as ONNX Runtime asks for them, one batch after another."""

    def __init__(self, calibration: Batches) -> None:
        self._batches: Iterator[Any] = iter(calibration)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch[0].numpy()}


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


OPENVINO_FILES: Mapping[str, str] = {
    "fp32": "openvino_model.xml",
    "fp16": "openvino_model_fp16.xml",
    "int8": "openvino_model_int8.xml",
}
"""Names by precision; the weights are beside it, in the file that ends with ``.bin``."""


def export_openvino(original: Original, precision: str, folder: Path) -> Exported:
    """Write OpenVINO's two files.

    fp16 is a compression of the weights, as OpenVINO has it: the device decides what it computes
    in. int8 is made from the quantised ONNX file.
    """
    import openvino

    path = folder / OPENVINO_FILES[precision]
    graph = onnx_graph(original, "int8" if precision == "int8" else "fp32")
    model = openvino_core().read_model(graph)
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    written = openvino_core().read_model(path)
    files = (path.name, path.with_suffix(".bin").name)
    return Exported(files, openvino_run(path), openvino_macs(written))


def openvino_run(path: Path) -> Callable[[Tensor], Tensor]:
    """What OpenVINO computes on the CPU, in float32 where it would take bfloat16 by itself."""
    core = openvino_core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    return lambda images: torch.from_numpy(compiled([images.numpy()])[0].copy())
