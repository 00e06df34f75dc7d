"""``octnas export`` of single networks, on a tiny run."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import octnas as package
from octnas.pipeline.records import read_results
from octnas.results.networks import SEARCHED
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import open_tiny


@pytest.fixture
def tiny(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run directory of a finished run."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "tiny"


def test_by_architecture(octnas: Octnas, tiny: Path, tmp_path: Path) -> None:
    result = read_results(open_tiny(tmp_path / "copy"))[-1]
    identity = result.network.architecture.id
    done = octnas(
        "export",
        str(tiny),
        *("--architecture", identity[:8], "--to", "timm,pt2", "--val-images", "20"),
        *("--out", str(tmp_path / "out"), "--data-license", "CC0"),
    )
    assert done.code == 0
    assert str(tmp_path / "out") in done.out
    assert "on 20 val images" in done.out
    document = json.loads((tmp_path / "out" / "export.json").read_text())
    assert document["id"] == identity
    assert [entry["format"] for entry in document["variants"]] == ["timm", "pt2"]
    assert document["variants"][1]["macs"] == result.network.cost.macs
    assert document["results"].keys() == {"0", "1"}
    assert document["data"]["license"] == "CC0"
    assert document["data"]["settings"]["data.val_images"] == 64
    assert package.load(tmp_path / "out") is not None


def test_by_budget_into_the_folder_of_the_stage(octnas: Octnas, tiny: Path) -> None:
    assert octnas("export", str(tiny), "--budget", "1x", "--to", "pt2").code == 0
    results = [r for r in read_results(open_tiny(tiny.parents[1])) if r.network.role == SEARCHED]
    largest = max(results, key=lambda result: result.network.cost.macs)
    folder = tiny / "export" / largest.network.slug
    names = {path.name for path in folder.iterdir()}
    assert {"model.pt2", "model.safetensors", "config.json", "README.md"} <= names
    # The stage is still finished.
    assert "export: skipped" in octnas("export", str(tiny)).out


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra octnas[export]")
@pytest.mark.slow
def test_every_format(octnas: Octnas, tiny: Path) -> None:
    done = octnas(
        *("export", str(tiny), "--budget", "uniform-0.5", "--to", "timm,onnx,openvino,pt2"),
        *("--int8-agreement", "0.5"),
    )
    assert done.code == 0
    for name in ("model.onnx", "model_fp16.onnx", "model_int8.onnx", "openvino_model.xml"):
        assert name in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architecture", "xyz"], "architecture: found 'xyz', allowed: the start of one of"),
        (["--budget", "0.001x"], "budget: found '0.001x', allowed: one of uniform α 0.75"),
        (["--budget", "1x", "--architecture", "a"], "give one of --architecture and --budget"),
        (["--to", "coreml"], "formats: found ('coreml',), allowed: one or more of timm, onnx"),
        (["--precision", "int4"], "precisions: found ('int4',), allowed: one or more of fp32"),
        (["--to", "tensorrt"], "format tensorrt: tensorrt: not installed; pip install tensorrt"),
    ],
)
def test_mistakes_are_one_line(
    octnas: Octnas, tiny: Path, arguments: list[str], message: str
) -> None:
    if "tensorrt" in arguments and find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    done = octnas("export", str(tiny), *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_other_files_in_the_folder_are_kept(octnas: Octnas, tiny: Path, tmp_path: Path) -> None:
    """An export needs an empty folder, or one with an export of the same weights."""
    first, last = (
        one.network.architecture.id
        for one in (read_results(open_tiny(tiny.parents[1]))[i] for i in (0, -1))
    )
    to = ("--to", "pt2", "--out", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    done = octnas("export", str(tiny), "--architecture", first, *to)
    assert done.code == 2
    assert "out: holds other files; give a new or an empty folder" in done.err
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    (tmp_path / "out" / "README.md").unlink()
    assert octnas("export", str(tiny), "--architecture", first, *to).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = octnas("export", str(tiny), "--architecture", last, *to)
    assert done.code == 2
    assert f"out: holds an export of {first}" in done.err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    to = ("--to", "timm", *to[2:])
    assert octnas("export", str(tiny), "--architecture", first, *to).code == 0
    assert {"model.pt2", "model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_fresh_is_for_all_networks(octnas: Octnas, tiny: Path) -> None:
    before = sorted(tiny.rglob("*"))
    done = octnas("export", str(tiny), "--budget", "1x", "--fresh", "export")
    assert done.code == 2
    assert "--fresh redoes all networks" in done.err
    assert sorted(tiny.rglob("*")) == before


def test_export_needs_retraining(octnas: Octnas, tiny: Path) -> None:
    for stage in ("retrain", "export", "report"):
        shutil.rmtree(tiny / stage)
    done = octnas("export", str(tiny), "--budget", "0.5x")
    assert done.code == 2
    assert "the retrain stage, which export needs, is not finished" in done.err


def test_changed_settings_need_a_fresh_stage(octnas: Octnas, tiny: Path) -> None:
    changed = ("--set", "export.data_license=CC0", "--set", "tracking.enabled=false")
    done = octnas("export", str(tiny), *changed)
    assert done.code == 2
    assert "stage export was made with other settings" in done.err
    assert "export.data_license" in done.err
    assert octnas("export", str(tiny), *changed, "--fresh", "export").code == 0
    cards = [path.read_text() for path in (tiny / "export").glob("*/README.md")]
    assert ["License of the data: CC0." in card for card in cards] == 7 * [True]
