"""ONNX files in int8, calibrated after training, by ONNX Runtime's quantisation."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from octnas.data.batches import Batches

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
