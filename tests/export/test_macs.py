"""MACs of exported graphs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import octnas
from octnas.export.macs import moved_macs, onnx_macs, openvino_macs, program_macs
from octnas.nn.onnx import openvino_core, save_onnx
from octnas.space.architecture import Architecture
from tests.nn.families import (
    arguments,
    create,
    random_alphas,
    size_of,
    skip_unless_exportable,
)
from tests.nn.test_deploy import some

needs_engines = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "openvino")),
    reason="the extra octnas[export]",
)


@needs_engines
@pytest.mark.parametrize("name", some("D"))
def test_macs_of_graphs_equal_the_closed_form(name: str, tmp_path: Path) -> None:
    skip_unless_exportable(name)
    model = create(name)
    alphas = random_alphas(model, 1)
    backbone, args = arguments(name)
    size = (3, *size_of(name))
    architecture = Architecture(backbone, size, alphas, backbone_args=args)
    deployed = octnas.deploy(octnas.octavize(model, alphas).eval())
    example, path = torch.zeros(2, *size), tmp_path / "model.onnx"
    expected = octnas.cost(architecture).macs + moved_macs(deployed, example)
    save_onnx(deployed, example, path, any_batch=True)
    assert onnx_macs(path) == expected
    assert openvino_macs(openvino_core().read_model(path)) == expected
    assert program_macs(program(deployed, example)) == expected


def program(deployed: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(deployed, (example,), dynamic_shapes=({0: batch},))


def test_convolutions_after_upsampling_count_at_full_resolution() -> None:
    """Stage 1 at α = .5: conv3 takes 32 low channels to 128 high ones, on 16×16 pixels."""
    model = timm.create_model("resnet50", layers=(1, 1, 1, 1))
    octnas.octavize(model, {"layer1": 0.5, "layer1.0.conv2": 0.5})
    deployed = octnas.deploy(model)
    assert moved_macs(deployed, torch.zeros(2, 3, 64, 64)) == 32 * 128 * (16 * 16 - 8 * 8)
