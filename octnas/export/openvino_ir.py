"""OpenVINO's own files, from the ONNX file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from octnas.export.macs import openvino_macs
from octnas.export.onnx_file import onnx_graph
from octnas.export.source import Exported, Original
from octnas.nn.engines import openvino_core

FILES: Mapping[str, str] = {
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

    path = folder / FILES[precision]
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
