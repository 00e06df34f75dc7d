"""``octnas bench`` as a user types it; no test looks at how long anything takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from octnas import cost
from octnas.measure import backends as backends_module
from octnas.measure import bench as bench_module
from octnas.measure.bench import BenchResult
from octnas.measure.settings import BenchSettings
from tests.cli.conftest import Octnas

SMALL = ("bench", "--model", "thumbnail_resnet", "--input-size", "32", "--repeats", "6")
EAGER = (*SMALL, "--backends", "eager")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchSettings]:
    """The settings that a command has made; nothing is measured."""
    made: list[BenchSettings] = []

    def bench(settings: BenchSettings, log: Any) -> BenchResult:
        made.append(settings)
        return BenchResult(settings, (), (), {"device": "none"})

    monkeypatch.setattr(bench_module, "bench", bench)
    return made


def test_a_table_for_a_reader(octnas: Octnas) -> None:
    result = octnas(*EAGER, "--alphas", "0.5,0.25/0.125/0.125", "--batch", "1,2")
    assert result.code == 0
    assert "thumbnail_resnet, 32 pixels, inference, float32" in result.out
    assert "time / MACs" in result.out
    assert result.out.count("best octave (eager) against best vanilla (eager)") == 4
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    assert len(rows) == 2 * 3
    assert sum("0.25/0.125/0.125" in row for row in rows) == 2
    assert "batch 2: timing" in result.err
    assert "batch 2: timing" not in result.out


def test_a_training_table(octnas: Octnas) -> None:
    result = octnas(*SMALL, "--mode", "training", "--alphas", "0.5", "--batch", "2")
    assert result.code == 0
    assert "kept for backward" in result.out
    assert "MB (1.000)" in result.out


def test_json(octnas: Octnas) -> None:
    """Nothing but JSON on stdout; α by stage as `octnas.cost` counts it."""
    result = octnas(*EAGER, "--alphas", "0.5, 0.25/0.125/0.125", "--batch", "1", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    rows = {row["alpha"]: row for row in document["rows"]}
    stages = {"layer1*": 0.25, "layer2*": 0.125, "layer3*": 0.125}
    choices: dict[str, Any] = {"0": 0.0, "0.5": 0.5, "0.25/0.125/0.125": stages}
    assert list(rows) == list(choices)
    for label, alphas in choices.items():
        row = rows[label]
        assert (row["backend"], row["batch"]) == ("eager", 1)
        macs = cost("thumbnail_resnet", alphas, input_size=(3, 32, 32)).macs
        assert row["macs"] == macs
        assert row["quotient"] == row["latency_ratio"] / row["macs_ratio"]
    assert document["settings"]["alphas"]["0.25/0.125/0.125"] == stages


def test_options_reach_the_settings(octnas: Octnas, asked: list[BenchSettings]) -> None:
    options = "--batch 2,16 --mode training --precision bfloat16 --threads 3 --repeats 9"
    more = "--channel-multiple 16 --input-size 64 --backends compile,eager --alphas 0.25,1"
    assert octnas("bench", *options.split(), *more.split()).code == 0
    assert asked == [
        BenchSettings(
            model="resnet50",
            input_size=64,
            alphas={"0.25": 0.25, "1": 1.0},
            channel_multiple=16,
            batches=(2, 16),
            backends=("compile", "eager"),
            mode="training",
            precision="bfloat16",
            threads=3,
            repeats=9,
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "backends"),
    [
        ("", ("eager", "onnxruntime", "openvino")),
        ("--mode training", ("eager",)),
        ("--precision bfloat16", ("eager",)),
        ("--device cuda", ("eager",)),
    ],
)
def test_backends_that_fit_are_the_default(
    octnas: Octnas,
    asked: list[BenchSettings],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    backends: tuple[str, ...],
) -> None:
    monkeypatch.setattr(backends_module, "find_spec", lambda name: None if name == "compile" else 1)
    assert octnas("bench", *arguments.split()).code == 0
    assert asked[0].backends == backends
    assert asked[0].batches == (1, 8)
    assert list(asked[0].alphas) == ["0.125", "0.25", "0.5", "0.75"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model resnet5", "backbone: found 'resnet5', allowed: a model that timm knows"),
        ("--model vit_tiny_patch16_224", "allowed: timm's ResNets"),
        ("--alphas 2", "alphas: found '2', allowed: numbers from 0 to 1"),
        ("--alphas half", "alphas: found 'half', allowed: numbers from 0 to 1"),
        ("--alphas nan", "alphas: found 'nan', allowed: numbers from 0 to 1"),
        ("--alphas 0.5/", "alphas: found '0.5/', allowed: numbers from 0 to 1"),
        ("--alphas=-0.5", "alphas: found '-0.5', allowed: numbers from 0 to 1"),
        ("--alphas 0,0.5", "alphas: found '0', allowed: others; vanilla is always measured"),
        ("--alphas 0.1/0.1/0.1/0.1/0.1", "'layer4*' names no site"),
        ("--batch 0", "batch: found (0,), allowed: 1 or more"),
        ("--batch=-1", "batch: found '-1', allowed: whole numbers"),
        ("--batch 1.5", "batch: found '1.5', allowed: whole numbers"),
        ("--batch ,", "batch: found (), allowed: one or more"),
        ("--backends tvm", "backends: found 'tvm', allowed: eager, compile, onnxruntime"),
        ("--mode training --backends openvino", "backends: found 'openvino', allowed: eager"),
        ("--mode both", "mode: found 'both', allowed: inference, training"),
        ("--precision int8", "precision: found 'int8', allowed: float32, bfloat16"),
        ("--device nonsense", "device: found 'nonsense', allowed: cpu or a device of this"),
        ("--device meta", "device: found 'meta', allowed: cpu or a device of this"),
        (
            "--model resnet18 --mode training --batch 1 --alphas 0.5",
            "batch: found 1, allowed: 2 or more, or a larger input_size than 32",
        ),
        ("--data nowhere.yaml --batch ,", "batch: found ',', allowed: whole numbers"),
        ("--threads=-1", "threads: found -1, allowed: 0 or more"),
        ("--repeats 1", "repeats: found 1, allowed: 6 or more"),
        ("--input-size 0", "input_size: found 0, allowed: 1 or more"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = octnas(*EAGER, *arguments.split())
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("octnas: ")
    assert len(result.err.splitlines()) == 1
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []
