"""Deployed networks, compiled and exported."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch.export import ExportedProgram

from octnas import deploy, octavize
from tests.nn.families import size_of
from tests.nn.reference import images, randomise
from tests.nn.test_deploy import check_same, network, some


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", some("SE-ResNeXt-T"))
def test_compiled_and_exported(name: str) -> None:
    """The sums stand in another order there, and the graph splits nothing."""
    model = network(name)
    x, fixed = images(2, 3, *size_of(name)), deploy(model)
    expected = model(x).detach()
    compiled = torch.compile(fixed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        check_same(compiled(x), expected)
        program = torch.export.export(fixed, (x,))
        check_same(program.module()(x), expected)
    # Kernels meet nothing but convolutions, as ECA's do, and the classifier.
    weights = set(program.graph_signature.inputs_to_parameters)
    called = {
        str(node.target)
        for node in program.graph.nodes
        if weights & {source.name for source in node.all_input_nodes}
    }
    assert "aten.conv2d.default" in called
    assert called <= {f"aten.{kind}.default" for kind in ("conv1d", "conv2d", "linear")}


def upsampled_channels(program: ExportedProgram) -> set[int]:
    nodes = [n for n in program.graph.nodes if "upsample_nearest2d" in str(n.target)]
    return {node.meta["val"].shape[1] for node in nodes}


def test_exported_it_upsamples_few_channels_before_a_convolution_to_many() -> None:
    """Stage 1 of a ResNet-50 at α = .5: conv3 takes 32 low channels to 128 high ones."""
    model = octavize(randomise(timm.create_model("resnet50", layers=(2, 1, 1, 1))), 0.5).eval()
    x, fixed = images(1, 3, 61, 64), deploy(model)
    with torch.no_grad():
        program = torch.export.export(fixed, (x,))
        found, expected = program.module()(x), fixed(x)
        check_same(found, expected)
    # What conv1, conv2 and conv3 of stages 1 to 3 upsample: 32, 64 and 128 channels, but for the
    # 512 of stage 3's conv3, which would read 128, too many.
    assert upsampled_channels(program) == {32, 64, 128, 512}
