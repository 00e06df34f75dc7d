"""MACs of exported graphs, by the convention of `octnas.space.costs`.

Convolutions and linear layers with learned weights are counted, for one image. Each of their
outputs sums over one row of the weight, so a layer costs the size of its weight times the pixels
of its output.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from octnas.nn.deploy import DeployedConv
from octnas.nn.octave import OctaveTensor

# In the names of learned kernels. timm's anti-aliasing filters are convolutions too, without it.
_LEARNED = "weight"


def onnx_macs(path: Path) -> int:
    """MACs of an ONNX file, with the shapes that onnx infers."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(
        onnx.load(path), strict_mode=True, data_prop=True
    ).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output):
        shapes[value.name] = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
    return sum(
        prod(shapes[node.input[1]]) * prod(shapes[node.output[0]][2:])
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and _LEARNED in node.input[1]
    )


def openvino_macs(model: Any) -> int:
    """MACs of an `openvino.Model`."""
    found = 0
    for op in model.get_ops():
        if op.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        source = op.input_value(1)
        kernel = source.get_node()
        while kernel.get_type_name() != "Constant":  # skip conversions to another precision
            kernel = kernel.input_value(0).get_node()
        if _LEARNED in kernel.get_friendly_name():
            sides = list(op.output(0).get_partial_shape())[2:]
            found += prod(source.get_shape()) * prod(side.get_length() for side in sides)
    return found


def program_macs(program: ExportedProgram) -> int:
    """MACs of a ``torch.export`` program."""
    learned = program.graph_signature.inputs_to_parameters
    kinds = (torch.ops.aten.conv1d, torch.ops.aten.conv2d, torch.ops.aten.linear)
    found = 0
    for node in program.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "overloadpacket", None) not in kinds:
            continue
        kernel: Any = node.args[1]
        if kernel.name in learned:
            found += prod(kernel.meta["val"].shape) * prod(node.meta["val"].shape[2:])
    return found


@torch.no_grad()
def moved_macs(deployed: nn.Module, example: torch.Tensor) -> int:
    """MACs of an exported graph beyond those of its architecture, for one image.

    Where `octnas.nn.deploy.DeployedConv` is exported, a 1×1 convolution from few low channels to
    many high ones comes after upsampling instead of before: the same result from more pixels,
    which engines compute faster.

    ``deployed`` is made by `octnas.deploy`; the example images have its input size.
    """
    found: list[int] = []

    def note(module: DeployedConv, inputs: tuple[object, ...]) -> None:
        x, conv = inputs[0], module.low_to_high
        if isinstance(x, OctaveTensor) and isinstance(conv, nn.Conv2d):
            more = prod(x.high.shape[2:]) - prod(x.low.shape[2:])
            found.append(conv.weight.numel() * more)

    handles = [
        module.register_forward_pre_hook(note)
        for module in deployed.modules()
        if isinstance(module, DeployedConv) and module.widens and module.how.steps(1, 0) < 0
    ]
    try:
        deployed(example)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)
