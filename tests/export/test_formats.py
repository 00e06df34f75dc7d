"""One network in every format that works on a CPU, and refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octnas
from octnas.errors import ExportError, RunDirectoryError
from octnas.export import formats
from octnas.export.formats import Outcome, check_installed, export_network
from octnas.export.settings import ExportSettings
from octnas.export.source import Exported, Loaded, Source
from octnas.export.timm_folder import export_timm
from octnas.space.architecture import Architecture
from tests.export.trained import ARCHITECTURE, DATA, images, make_source, randomised

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")),
    reason="the extra octnas[export]",
)
ALL = ExportSettings(
    formats=("timm", "onnx", "openvino", "pt2"),
    val_images=0,
    calibration_images=64,
    int8_agreement=0.8,
)
TIMM = ExportSettings(val_images=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def exported(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("export") / "network"
    return folder, export_network(source, images(), ALL, folder)


def test_every_variant_is_compared_with_its_source(exported: tuple[Path, Outcome]) -> None:
    folder, outcome = exported
    assert outcome.refused == ()
    assert tuple(variant.key for variant in outcome.variants) == ALL.variants
    for variant in outcome.variants:
        found = variant.comparison
        assert found.images == DATA.val_images
        assert found.refusal(variant.tolerance) == ""
        assert variant.bytes == sum((folder / name).stat().st_size for name in variant.files)
    by_key = {variant.key: variant.comparison for variant in outcome.variants}
    assert by_key["timm", "fp32"].difference == 0
    for name in ("onnx", "openvino", "pt2"):
        assert 0 < by_key[name, "fp32"].difference < 1e-4
    for name in ("onnx", "openvino"):
        # Rounded to 11 and to 8 significant bits: not the same file again.
        assert 1e-4 < by_key[name, "fp16"].difference < by_key[name, "int8"].difference


def test_macs_of_the_graphs_are_the_architectures(
    exported: tuple[Path, Outcome], source: Source
) -> None:
    _, outcome = exported
    counted = {v.key: v.macs for v in outcome.variants if v.format != "timm"}
    assert set(counted.values()) == {source.network.cost.macs}
    assert len(counted) == 7


def test_the_folder_rebuilds_the_network(exported: tuple[Path, Outcome]) -> None:
    folder, _ = exported
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        expected = randomised(ARCHITECTURE)(x)
        assert expected.abs().mean() > 1e-2
        assert torch.equal(octnas.load(folder)(x), expected)
    document = json.loads((folder / "export.json").read_text())
    assert document["schema"] == 1
    assert Architecture.from_dict(document["architecture"]) == ARCHITECTURE
    assert document["data"]["preparation"]["mean"] == [0.16]
    assert document["data"]["digest"] == "0123"
    assert document["versions"]["torch"] == version("torch")
    assert Architecture.load(folder / "architecture.json") == ARCHITECTURE
    assert not list(folder.glob(".*"))


def test_no_paths_of_this_machine_are_exported(exported: tuple[Path, Outcome]) -> None:
    folder, _ = exported
    for file in folder.iterdir():
        content = file.read_bytes()
        for place in (b"site-packages", str(Path.cwd()).encode(), b"/octnas/nn/"):
            assert place not in content, file.name


@pytest.mark.parametrize("count", [1, 5])
def test_other_engines_take_any_batch_size(exported: tuple[Path, Outcome], count: int) -> None:
    import onnx
    import onnxruntime

    folder, _ = exported
    x = torch.randn(count, 1, 16, 16)
    with torch.no_grad():
        expected = randomised(ARCHITECTURE)(x)
        program = torch.export.load(folder / "model.pt2").module()(x)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    logits = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
    for found in (program, logits):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    opsets = [entry.version for entry in onnx.load(folder / "model.onnx").opset_import]
    assert opsets == [18]


def test_int8_computes_in_int8(exported: tuple[Path, Outcome]) -> None:
    import onnx

    folder, _ = exported
    graph = onnx.load(folder / "model_int8.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    convs = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convs) > 5
    for node in convs:
        assert {makers[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
    stored = {t.name: t.data_type for t in graph.initializer}
    kinds = {stored[makers[node.input[1]].input[0]] for node in convs}
    assert kinds == {onnx.TensorProto.INT8}


def test_loading_needs_none_of_the_search_libraries(exported: tuple[Path, Outcome]) -> None:
    """Even if they are not installed; and a program needs torch only."""
    folder, _ = exported
    program = f"""
import sys
for name in ("optuna", "ray", "mlflow", "pydantic", "onnx", "onnxruntime", "openvino"):
    sys.modules[name] = None  # importing it is an ImportError now
import torch
program = torch.export.load("{folder}/model.pt2").module()
print(program(torch.ones(1, 1, 16, 16)).abs().max().item() > 1e-3)
print(sorted({{"octnas", "timm"}} & set(sys.modules)))
import timm, octnas.nn
networks = [timm.create_model("local-dir:{folder}", pretrained=True).eval()]
import octnas
networks.append(octnas.load("{folder}"))
for network in networks:
    print(network.training, network(torch.ones(1, 1, 16, 16)).abs().max().item() > 1e-3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["True", "[]", *2 * ["False True"]]


def test_other_variants_of_the_same_weights_are_kept(source: Source, tmp_path: Path) -> None:
    export_network(source, images(), TIMM, tmp_path)
    outcome = export_network(source, images(), replace(TIMM, formats=("pt2",)), tmp_path)
    assert [variant.key for variant in outcome.variants] == [("pt2", "fp32")]
    document = json.loads((tmp_path / "export.json").read_text())
    assert [entry["format"] for entry in document["variants"]] == ["timm", "pt2"]
    assert "model.pt2" in (tmp_path / "README.md").read_text()
    # Variants of other weights are removed.
    other = tmp_path / "other"
    other.mkdir()
    changed = make_source(other)
    weights = randomised(ARCHITECTURE)
    weights.fc.bias.data += 1
    from safetensors.torch import save_file

    save_file(weights.state_dict(), changed.weights)
    export_network(changed, images(), TIMM, tmp_path)
    assert not (tmp_path / "model.pt2").exists()
    document = json.loads((tmp_path / "export.json").read_text())
    assert [entry["format"] for entry in document["variants"]] == ["timm"]


def test_an_unknown_record_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"schema": 99}')
    with pytest.raises(RunDirectoryError, match="schema: found 99, allowed: 1"):
        export_network(source, images(), TIMM, tmp_path)


def spoilt(loaded: Loaded, precision: str, folder: Path) -> Exported:
    """A broken writer: its logits differ from the source's."""
    good = export_timm(loaded, precision, folder)

    def run(x: Tensor) -> Tensor:
        return good.run(x).roll(1, 1)

    return replace(good, run=run)


def with_other_macs(loaded: Loaded, precision: str, folder: Path) -> Exported:
    return replace(export_timm(loaded, precision, folder), macs=7)


def without_a_number(loaded: Loaded, precision: str, folder: Path) -> Exported:
    good = export_timm(loaded, precision, folder)
    return replace(good, run=lambda x: good.run(x) * float("nan"))


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (spoilt, "refused on the val images: logits differ by"),
        (without_a_number, "logits differ by nan of an image's largest, allowed: 0.001"),
        (with_other_macs, "its graph has 7 MACs, expected: "),
    ],
)
def test_a_wrong_export_is_refused_and_the_others_are_written(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: object,
    message: str,
) -> None:
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "timm": writer})
    both = replace(TIMM, formats=("timm", "pt2"))
    outcome = export_network(source, images(), both, tmp_path)
    (line,) = outcome.refused
    assert line.startswith("searched, uniform α 0.5: timm fp32: ")
    assert message in line
    assert "\n" not in line
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"README.md", "architecture.json", "export.json", "model.pt2"}


def test_int8_outside_its_tolerance_is_removed(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tolerance of fp32."""
    strict = ExportSettings().tolerance("fp32")
    monkeypatch.setattr(ExportSettings, "tolerance", lambda _, precision: strict)
    settings = replace(ALL, formats=("onnx",), precisions=("fp32", "int8"), calibration_images=8)
    outcome = export_network(source, images(), settings, tmp_path)
    (line,) = outcome.refused
    assert "onnx int8: refused" in line
    assert "allowed: 0.001; calibrate on more images" in line
    assert (tmp_path / "model.onnx").exists()
    assert not (tmp_path / "model_int8.onnx").exists()


@pytest.mark.parametrize(
    ("missing", "name", "words"),
    [
        ("openvino", "openvino", 'openvino: not installed; pip install "octnas[export]"'),
        ("onnx", "onnx", 'onnx: not installed; pip install "octnas[export]"'),
        ("tensorrt", "tensorrt", "tensorrt: not installed; pip install tensorrt"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, missing: str, name: str, words: str
) -> None:
    def without(package: str) -> ModuleSpec | None:
        return None if package == missing else find_spec("json")

    monkeypatch.setattr(formats, "find_spec", without)
    with pytest.raises(ExportError) as caught:
        check_installed(ExportSettings(formats=(name,)))  # type: ignore[arg-type]
    assert words in str(caught.value)
    check_installed(TIMM)
