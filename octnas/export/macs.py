"""Multiply-adds counted on exported graphs, by the convention of `octnas.space.costs`.

One multiply-add is one MAC; convolutions and linear layers with learned weights are counted, for
one image. Every value that such a layer puts out is a sum over one row of its weight, so that a
layer costs its weight's size times the pixels of its output.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from octnas.nn.deploy import DeployedConv
from octnas.nn.octave import OctaveTensor

# Filters that blur (timm's anti-aliasing) are convolutions too, but not called so.
_LEARNED = "weight"


def onnx_macs(path: Path) -> int:
    """MACs of an ONNX file, its shapes as onnx infers them."""
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
        # Behind what brings a stored kernel to the precision of the computation.
        while kernel.get_type_name() != "Constant":
            kernel = kernel.input_value(0).get_node()
        if _LEARNED in kernel.get_friendly_name():
            sides = list(op.output(0).get_partial_shape())[2:]
            found += prod(source.get_shape()) * prod(side.get_length() for side in sides)
    return found


def program_macs(program: ExportedProgram) -> int:
    """MACs of a program of ``torch.export``."""
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
    """MACs that an exported graph has beyond those of its architecture, for one image.

    `octnas.nn.deploy.DeployedConv` upsamples what a 1×1 convolution of a few low channels to many
    reads, instead of what it writes, where it is exported. That is the same sum at more pixels,
    and engines are faster so.

    Args:
        deployed: by `octnas.deploy`.
        example: images of its input size.
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
