"""A pack is measured where there is no octnas, and its answer believed no further than it fits."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octnas.errors import LatencyError
from octnas.measure import pack as pack_module
from octnas.measure.pack import read_answer, write_pack
from octnas.measure.settings import LatencySettings
from octnas.nn.search_space import search_space
from octnas.space.latency import LatencyTable, geometry_of
from octnas.space.search_space import SearchSpace

SETTINGS = LatencySettings(networks=2, narrow=1, fit=3)
needs_onnx = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra octnas[export]",
)
# No octnas, no torch: what is set to None cannot be imported.
ALONE = """
import runpy, sys
for name in ("octnas", "torch", "timm", "scipy"):
    sys.modules[name] = None
sys.argv = ["measure.py", *sys.argv[2:]]
runpy.run_path(PATH, run_name="__main__")
"""


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    args = {"layers": [1, 1, 1], "channels": [4, 4, 4]}
    fixed = {"layer[12]*": 0.0, "layer3.*": 0.0}
    return search_space("thumbnail_resnet", (1, 8, 8), (0, 0.5), backbone_args=args, fixed=fixed)


def empty(_module: object, _inputs: object, path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def pack(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack whose ONNX files are empty."""
    monkeypatch.setattr(pack_module, "save_onnx", empty)
    write_pack(space, SETTINGS, tmp_path / "pack")
    return tmp_path / "pack"


@pytest.fixture
def answered(pack: Path) -> Path:
    """The same with an answer of made-up times: networks take the sum of their layers."""
    manifest = json.loads((pack / "manifest.json").read_text())
    rng = np.random.default_rng(0)
    seconds = {key: float(rng.uniform(1e-5, 1e-4)) for key in manifest["keys"]}
    for entry in manifest["networks"]:
        alphas = {None: 0.0, **entry["alphas"]}
        seconds[entry["key"]] = 1e-4 + sum(
            seconds[key]
            for layer in manifest["layers"]
            for a, b, key in layer["keys"]
            if (a, b) == (alphas[layer["site_in"]], alphas[layer["site_out"]])
        )
    answer = {
        "schema": 1,
        "device": "phone",
        "threads": 2,
        "onnxruntime": "1",
        "seconds": dict.fromkeys(("ratio", "even", "odd"), seconds),
        "manifest": manifest,
    }
    (pack / "answer.json").write_text(json.dumps(answer))
    return pack


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = ALONE.replace("PATH", repr(str(folder / "measure.py")))
    command = [sys.executable, "-c", program, "", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=folder)


def test_a_pack_holds_all_that_is_timed(pack: Path) -> None:
    manifest = json.loads((pack / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert {path.name for path in pack.iterdir()} == {
        *("manifest.json", "measure.py"),
        *(f"{key}.onnx" for key in manifest["keys"]),
    }
    assert manifest["reference"] in manifest["keys"]
    used = {key for layer in manifest["layers"] for *_, key in layer["keys"]}
    used |= {network["key"] for network in manifest["networks"]}
    assert used | {manifest["reference"]} == set(manifest["keys"])


def test_files_that_are_there_are_not_written_again(
    space: SearchSpace, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sorted(pack.glob("*.onnx"))[0]
    gone.unlink()
    written: list[Path] = []

    def note(module: object, inputs: object, path: Path) -> None:
        written.append(path)
        empty(module, inputs, path)

    monkeypatch.setattr(pack_module, "save_onnx", note)
    write_pack(space, SETTINGS, pack)
    assert [path.stem for path in written] == [gone.stem]


@pytest.mark.parametrize("name", ["", "answer.json"])
def test_an_answer_becomes_a_table(answered: Path, space: SearchSpace, name: str) -> None:
    table = read_answer(answered / name)
    assert (table.device, table.backend, table.threads) == ("phone", "onnxruntime", 2)
    assert (table.constant, table.factor) == (pytest.approx(1e-4, rel=1e-2), pytest.approx(1, 1e-2))
    assert table.predict(space, {}) > 0
    assert LatencyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def key_of_path(answer: dict[str, Any]) -> None:
    answer["manifest"]["keys"][0] = "../../../etc/passwd"


def negative(answer: dict[str, Any]) -> None:
    answer["seconds"]["ratio"][answer["manifest"]["keys"][0]] = -1.0


def too_long(answer: dict[str, Any]) -> None:
    """Of a whole network: a fit would make of it what no table may hold."""
    answer["seconds"]["ratio"][answer["manifest"]["networks"][0]["key"]] = 1e300


def missing(answer: dict[str, Any]) -> None:
    del answer["seconds"]["odd"][answer["manifest"]["keys"][0]]


def no_space(answer: dict[str, Any]) -> None:
    answer["manifest"]["space"] = {"schema": 1}


def other_schema(answer: dict[str, Any]) -> None:
    answer["schema"] = 2


def no_layers(answer: dict[str, Any]) -> None:
    answer["manifest"]["layers"] = []


def no_site(answer: dict[str, Any]) -> None:
    answer["manifest"]["layers"][0]["site_out"] = "nowhere"


def no_networks(answer: dict[str, Any]) -> None:
    answer["manifest"]["networks"] = []


@pytest.mark.parametrize(
    "spoil",
    [
        key_of_path,
        negative,
        too_long,
        missing,
        no_space,
        other_schema,
        no_layers,
        no_site,
        no_networks,
    ],
)
def test_a_spoilt_answer_is_refused_in_one_line(
    answered: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    file = answered / "answer.json"
    answer = json.loads(file.read_text())
    spoil(answer)
    file.write_text(json.dumps(answer))
    with pytest.raises(LatencyError) as caught:
        read_answer(answered)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "3", "[" * 5000, '"text"'])
def test_what_is_no_answer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "answer.json"
    file.write_text(content)
    with pytest.raises(LatencyError, match=r"measure\.py writes it on the device") as caught:
        read_answer(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(LatencyError, match="no such file"):
        read_answer(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "ABCDEF0123456789", "0123"])
def test_the_script_reads_no_file_outside(pack: Path, key: str) -> None:
    manifest = json.loads((pack / "manifest.json").read_text())
    manifest["keys"].append(key)
    (pack / "manifest.json").write_text(json.dumps(manifest))
    pytest.importorskip("onnxruntime")
    done = run_alone(pack)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"measure: {pack / 'manifest.json'}: not a manifest of schema 1"
    ]


@needs_onnx
@pytest.mark.slow
def test_the_script_needs_no_octnas(space: SearchSpace, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_pack(space, SETTINGS, tmp_path)
    done = run_alone(tmp_path, "--name", "phone", "--repeats", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert set(answer["seconds"]["ratio"]) == set(answer["manifest"]["keys"])
    assert answer["device"] == "phone"
    # So few networks on a busy machine may be too noisy for a fit.
    with contextlib.suppress(LatencyError):
        assert read_answer(tmp_path).geometry == geometry_of(space)
    # What is kept is gone on with, and of another device it is refused.
    lines = (tmp_path / "measured.jsonl").read_text()
    assert run_alone(tmp_path, "--name", "phone", "--repeats", "4").returncode == 0
    assert (tmp_path / "measured.jsonl").read_text() == lines
    other = run_alone(tmp_path, "--name", "tablet", "--repeats", "4")
    assert other.returncode == 1
    assert "was measured with device 'phone', now 'tablet'" in other.stderr
    assert len(other.stderr.splitlines()) == 1
