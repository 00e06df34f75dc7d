"""A TensorRT engine from the ONNX file, for the GPU of this machine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octnas.errors import ExportError
from octnas.export.macs import onnx_macs
from octnas.export.onnx_file import FILES as ONNX_FILES
from octnas.export.onnx_file import onnx_graph
from octnas.export.source import Exported, Original

FILES: Mapping[str, str] = {
    "fp32": "model.plan",
    "fp16": "model_fp16.plan",
    "int8": "model_int8.plan",
}
"""Names by precision."""

BATCHES = (1, 8, 64)
"""Fewest, usual and most images at a time of an engine."""


def trtexec_line(precision: str, input_size: tuple[int, int, int]) -> str:
    """The command that builds the same engine without octnas."""
    size = "x".join(map(str, input_size))
    shapes = " ".join(
        f"--{kind}Shapes=images:{batch}x{size}"
        for kind, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
    )
    # The types of the graph, as they stand in the file.
    typed = "" if precision == "fp32" else " --stronglyTyped"
    return f"trtexec --onnx={ONNX_FILES[precision]} {shapes}{typed} --saveEngine={FILES[precision]}"


def export_tensorrt(original: Original, precision: str, folder: Path) -> Exported:
    """Build an engine; it runs on GPUs of the kind that built it, with the same TensorRT.

    Raises:
        ExportError: there is no GPU, or TensorRT refuses the network.
    """
    if not torch.cuda.is_available():
        raise ExportError("tensorrt: an engine is built on a GPU, and there is none here")
    graph, path = onnx_graph(original, precision), folder / FILES[precision]
    path.write_bytes(_build(graph, original.source.network.architecture.input_size))
    # An engine tells nothing of its layers' shapes; the graph that it was built from does.
    return Exported((path.name,), _run(path, len(original.source.class_names)), onnx_macs(graph))


def _build(graph: Path, input_size: tuple[int, int, int]) -> bytes:
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise ExportError(f"tensorrt: cannot read the network ({parser.get_error(0).desc()})")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((batch, *input_size) for batch in BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError("tensorrt: the engine could not be built")
    return bytes(plan)


def _run(path: Path, num_classes: int) -> Callable[[Tensor], Tensor]:
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine: Any = runtime.deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()

    def run(images: Tensor) -> Tensor:
        found = images.cuda().contiguous()
        logits = torch.empty((len(images), num_classes), device=found.device)
        context.set_input_shape("images", tuple(found.shape))
        context.set_tensor_address("images", found.data_ptr())
        context.set_tensor_address("logits", logits.data_ptr())
        stream = torch.cuda.current_stream()
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return logits.cpu()

    return run
