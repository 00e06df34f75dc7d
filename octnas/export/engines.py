"""Files for inference engines: ONNX, and OpenVINO and TensorRT, which are converted from it.

Batch norms are folded and kernels split. ONNX and OpenVINO files take any batch size.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from octnas.data.batches import Batch, Batches
from octnas.errors import ExportError
from octnas.export.macs import onnx_macs, openvino_macs
from octnas.export.source import Exported, Loaded
from octnas.nn.onnx import openvino_core, save_onnx

# Residual additions, pooling and upsampling, a tiny share of the arithmetic, stay in float32:
# quantizing them too changed the class of twice as many images.
_QUANTIZED = ["Conv", "Gemm"]

BATCHES = (1, 8, 64)
"""Smallest, typical and largest batch of a TensorRT engine."""


def file_name(name: str, precision: str) -> str:
    """The name of a file in a precision: ``model.onnx``, ``model_fp16.onnx``."""
    stem, _, suffix = name.partition(".")
    return name if precision == "fp32" else f"{stem}_{precision}.{suffix}"


def export_onnx(loaded: Loaded, precision: str, folder: Path) -> Exported:
    """Write an ONNX file; its images and logits are float32 in every precision."""
    path = folder / file_name("model.onnx", precision)
    path.write_bytes(_onnx_file(loaded, precision).read_bytes())
    return Exported((path.name,), _onnxruntime(path), onnx_macs(path))


def export_openvino(loaded: Loaded, precision: str, folder: Path) -> Exported:
    """Write OpenVINO's two files.

    In fp16 the weights are compressed, and the device decides on the precision of its arithmetic;
    int8 is converted from the quantized ONNX file.
    """
    import openvino

    path = folder / file_name("openvino_model.xml", precision)
    core, source = openvino_core(), "int8" if precision == "int8" else "fp32"
    model = core.read_model(_onnx_file(loaded, source))
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    written = core.read_model(path)
    # CPUs that can would compute in bfloat16.
    compiled = core.compile_model(written, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    return Exported(
        (path.name, path.with_suffix(".bin").name),
        lambda images: torch.from_numpy(compiled([images.numpy()])[0].copy()),
        openvino_macs(written),
    )


def export_tensorrt(loaded: Loaded, precision: str, folder: Path) -> Exported:
    """Build a TensorRT engine for GPUs like the one here and this version of TensorRT.

    Raises:
        ExportError: there is no GPU, or TensorRT refuses the network.
    """
    if not torch.cuda.is_available():
        raise ExportError("tensorrt: building an engine needs a GPU, and none was found")
    graph, path = _onnx_file(loaded, precision), folder / file_name("model.plan", precision)
    path.write_bytes(_engine(graph, loaded.source.network.architecture.input_size))
    run = _tensorrt(path, len(loaded.source.class_names))
    # An engine does not show the shapes of its layers; the graph that it was built from does.
    return Exported((path.name,), run, onnx_macs(graph))


def trtexec_command(precision: str, input_size: tuple[int, int, int]) -> str:
    """The command that builds the same engine without octnas."""
    size = "x".join(map(str, input_size))
    shapes = " ".join(
        f"--{kind}Shapes=images:{batch}x{size}"
        for kind, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
    )
    typed = "" if precision == "fp32" else " --stronglyTyped"  # the types of the ONNX file
    onnx, plan = (file_name(name, precision) for name in ("model.onnx", "model.plan"))
    return f"trtexec --onnx={onnx} {shapes}{typed} --saveEngine={plan}"


def _onnx_file(loaded: Loaded, precision: str) -> Path:
    """The ONNX file in the scratch folder; written once."""
    path = loaded.scratch / file_name("model.onnx", precision)
    if not path.exists():
        if precision == "int8":
            _quantize(_onnx_file(loaded, "fp32"), loaded.calibration, path)
        else:
            deployed = loaded.deployed
            network = deployed if precision == "fp32" else _Half(deployed).eval()
            save_onnx(network, loaded.example, path, any_batch=True)
    return path


class _Half(nn.Module):
    """A network that computes in float16, with float32 input and output.

    Converters of ONNX files would leave upsampling in float32, with a cast on each side.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.half())
        return logits.float()


def _quantize(source: Path, calibration: Batches, path: Path) -> None:
    """Write an ONNX file whose convolutions and classifier compute in int8.

    In the QDQ format, symmetric, which ONNX Runtime, OpenVINO and TensorRT read: weights per
    channel, activations per tensor over the range of the calibration images.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "model.onnx"
        # Optimization would rename the weights, whose names `octnas.export.macs` needs.
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _CalibrationReader(iter(calibration)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True},
        )


@dataclass(frozen=True)
class _CalibrationReader:
    """Calibration images in the form that ONNX Runtime asks for."""

    batches: Iterator[Batch]

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch[0].numpy()}


def _onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    """Run an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _engine(graph: Path, input_size: tuple[int, int, int]) -> bytes:
    """Build a TensorRT engine from an ONNX file."""
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


def _tensorrt(path: Path, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Run a TensorRT engine on the GPU."""
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
