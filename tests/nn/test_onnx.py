"""Networks as ONNX files: what other engines read from them, and what stands in them."""

import logging
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from octnas import deploy, octavize
from octnas.errors import ExportError, SettingError
from octnas.nn import onnx as octnas_onnx
from octnas.nn.deploy import DeployedConv
from octnas.nn.onnx import save_onnx
from tests.nn.families import (
    create,
    random_alphas,
    site_names,
    size_of,
    skip_unless_exportable,
)
from tests.nn.reference import assert_sizeable, images
from tests.nn.test_deploy import some

LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino")
needs_engines = pytest.mark.skipif(
    not all(find_spec(name) for name in LIBRARIES), reason="the extra octnas[export]"
)
# Nothing that computes on weights, and no batch norm.
OPERATORS = {
    *("Conv", "Relu", "Add", "AveragePool", "MaxPool", "Resize", "Slice", "Concat", "Split"),
    *("ReduceMean", "Reshape", "Gemm", "Mul", "Sigmoid", "GlobalAveragePool", "Flatten"),
    *("ReduceMax", "HardSigmoid", "Unsqueeze", "Expand"),  # other attention and global pooling
    "Pad",  # of blurring, and of pooling in dilated stages
}


def onnxruntime_logits(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def openvino_logits(path: Path, x: Tensor) -> Tensor:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    return torch.from_numpy(compiled([x.numpy()])[0])


ENGINES: tuple[Callable[[Path, Tensor], Tensor], ...] = (onnxruntime_logits, openvino_logits)


def check_engines(path: Path, x: Tensor, expected: Tensor) -> None:
    assert_sizeable(expected)
    for engine in ENGINES:
        error = (engine(path, x) - expected).abs().max()
        assert error <= 2e-5 * expected.abs().max(), engine.__name__


def network(name: str, seed: int = 1) -> nn.Module:
    model = create(name)
    return octavize(model, random_alphas(model, seed)).eval()


@needs_engines
def test_an_operation_that_onnx_does_not_have_is_one_line(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"^torch .* cannot write .*bessel_j0[^\n]*$"):
        save_onnx(Bessel().eval(), images(2, 3, 8, 8), path)
    assert not path.exists()


@needs_engines
@pytest.mark.parametrize("name", some("SE-ResNeXt-T"))
def test_other_engines_give_the_models_logits(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx

    skip_unless_exportable(name)
    model, path = network(name), tmp_path / "model.onnx"
    x, fixed = images(2, 3, *size_of(name)), deploy(model)
    capfd.readouterr()
    save_onnx(fixed, x, path)
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    with torch.no_grad():
        check_engines(path, x, model(x))

    graph = onnx.load(path).graph
    assert {node.op_type for node in graph.node} <= OPERATORS
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert len(graph.input) == 1
    assert graph.input[0].name == "images"
    assert [output.name for output in graph.output] == ["logits"]
    # One convolution per path (and one or two in each attention), of stored kernels only; filters
    # that blur are no kernels to learn, and may be used on several maps.
    convs = [node for node in graph.node if node.op_type == "Conv"]
    learned = [node for node in convs if node.input[1].endswith(".weight")]
    assert len(convs) == len(learned) or name.startswith("blurred")
    kinds = nn.Conv1d | nn.Conv2d
    assert len(learned) == sum(isinstance(module, kinds) for module in fixed.modules())
    for node in convs:
        assert all(name in weights for name in node.input[1:]), node.name
    # Kernels are never cut: what is sliced or split is a feature map.
    for node in graph.node:
        if node.op_type in ("Split", "Slice", "Concat"):
            assert node.input[0] not in weights, node.name


@needs_engines
def test_what_octavize_made_is_exported_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With kernels split in the graph; and just as silently."""
    model, x = network("thumbnail"), images(2, 3, 15, 13)
    capfd.readouterr()
    save_onnx(model, x, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    # Outside of pytest, which takes them all, warnings without a handler go to stderr.
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    with torch.no_grad():
        check_engines(tmp_path / "model.onnx", x, model(x))


@needs_engines
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("basic", (33, 32), marks=pytest.mark.slow),
        *(
            pytest.param(name, size, marks=pytest.mark.slow)
            for name in ("basic", "bottleneck", "ResNeXt", "D", "SE", "blurred", "RS")
            for size in ((32, 32), (8, 8), (32, 64), (9, 70), (1, 1))
        ),
    ],
)
def test_maps_of_one_pixel_are_exported(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """No engine loads a kernel that is larger than the map."""
    model = create(name)
    octavize(model, dict.fromkeys(site_names(model), 0.5)).eval()
    x = images(2, 3, *size)
    for index, exported in enumerate((deploy(model), model)):
        path = tmp_path / f"{index}.onnx"
        save_onnx(exported, x, path)
        with torch.no_grad():
            check_engines(path, x, model(x))


@needs_engines
def test_the_network_and_the_images_are_left_as_they_are(tmp_path: Path) -> None:
    model, x = deploy(network("thumbnail")), images(1, 3, 16, 16)
    state, before = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    save_onnx(model, x, tmp_path / "model.onnx")
    assert torch.equal(x, before)
    assert not any(module.training for module in model.modules())
    assert any(isinstance(module, DeployedConv) for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_exporter(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> ModuleSpec | None:
        return None if name == missing else find_spec("json")

    monkeypatch.setattr(octnas_onnx, "find_spec", without)
    model, path = deploy(network("thumbnail")), tmp_path / "model.onnx"
    with pytest.raises(SettingError) as caught:
        save_onnx(model, images(1, 3, 16, 16), path)
    assert "octnas[export]" in str(caught.value)
    assert missing in str(caught.value)
    assert not path.exists()
