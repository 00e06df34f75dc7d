"""``octnas bench`` as a user types it; no test looks at how long anything takes.

``octnas bench --data`` as a user types it; no test looks at how long anything takes.

``octnas bench --supernet`` as a user types it; no test looks at how long anything takes.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from octnas import cost
from octnas.measure import backends as backends_module
from octnas.measure import bench as bench_module
from octnas.measure import bench_data as module
from octnas.measure.bench import BenchResult
from octnas.measure.bench_data import DataBenchSettings
from octnas.measure.settings import BenchSettings
from octnas.pipeline import bench as steps_module
from tests.cli.conftest import Octnas
from tests.data.trees import make_tree
from tests.pipeline.tiny import EXPERIMENT

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
        ("--alphas 0.1/0.1/0.1/0.1/0.1", "'layer4*' matches no site"),
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


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tree of 14 training images, and turns that are short."""
    measure = module.bench_data

    def short(data: Any, architecture: Any, settings: DataBenchSettings, progress: Any) -> Any:
        return measure(data, architecture, replace(settings, batches=2, repeats=6), progress)

    monkeypatch.setattr(module, "bench_data", short)
    tree = make_tree(tmp_path / "tree")
    data = (
        f"data={{source: folder, root: {tree}, search_val_per_class: 3, read_per_class: 2, "
        f"workers: 0, cache: {{folder: {tmp_path / 'cache'}}}}}"
    )
    small = ("space.backbone_args.channels=[4, 8, 8]", "space.input_size=[3, 16, 16]", data)
    sets = [word for override in small for word in ("--set", override)]
    return ["bench", "--data", str(EXPERIMENT), *sets]


def test_a_table_for_a_reader_of_images(octnas: Octnas, arguments: list[str]) -> None:
    result = octnas(*arguments, "--batch", "6", "--threads", "1")
    assert result.code == 0
    assert "batches of 6, cpu, float32, threads: 1" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["files", "cache", "step", "step from files", "step from cache"]
    assert "times as fast as files" in result.out


def test_json_of_images(octnas: Octnas, arguments: list[str]) -> None:
    result = octnas(*arguments, "--batch", "6", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    rows = {row["what"]: row["images_per_second"] for row in document["rows"]}
    assert all(value > 0 for value in rows.values())
    assert document["speed_up"]["low"] <= document["speed_up"]["value"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--batch", "20"), "batch: found 20, allowed: at most the 14 training images"),
        (("--batch", "x"), "batch: found 'x'"),
        (("--device", "moon"), "device: found 'moon'"),
        (("--set", "data={source: digits}"), "allowed: images on disk"),
        (("--set", "data.root=/nowhere"), "data.root: found '/nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2_of_images(
    octnas: Octnas, arguments: list[str], extra: tuple[str, ...], message: str
) -> None:
    result = octnas(*arguments, *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


CHANNELS = "space.backbone_args.channels=[4, 8, 8]"
SMALL_STEPS = ("--set", CHANNELS, "--threads", "1", "--repeats", "6")
COMMAND = ("bench", "--supernet", str(EXPERIMENT), *SMALL_STEPS)
WAYS = ["uniform", "by_macs", "sandwich"]


@pytest.mark.slow
def test_a_table_for_a_reader_of_steps(octnas: Octnas) -> None:
    result = octnas(*COMMAND, "--batch", "4")
    assert result.code == 0
    assert "training steps of 4 images, cpu, float32, threads: 1, medians of 6 × 4" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["vanilla", *WAYS, *(f"{way}, switchable" for way in WAYS)]


def test_json_and_the_experiments_batch(octnas: Octnas, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(steps_module.StepBenchSettings, steps=1)
    monkeypatch.setattr(steps_module, "StepBenchSettings", few)
    small = "space.backbone_args={layers: [1, 1], channels: [4, 8]}"
    changes = ("supernet.recipe.batch_size=6", "supernet.samples=1", "supernet.teacher=0.5", small)
    sets = [word for change in changes for word in ("--set", change)]
    result = octnas(*COMMAND, *sets, "--precision", "bfloat16", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["settings"]["batch_size"] == 6
    networks = {row["what"]: row["networks"] for row in document["rows"]}
    assert networks["vanilla"] == networks["uniform"] == networks["by_macs, switchable"] == 1
    # Both ends and one that is drawn; the teacher is the largest whatever the experiment says.
    assert networks["sandwich"] == networks["sandwich, switchable"] == 3
    for row in document["rows"]:
        assert row["images_per_second"] == pytest.approx(6 * row["steps_per_second"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--batch", "1"), "batch: found 1, allowed: 2 or more"),
        (("--batch", "x"), "batch: found 'x'"),
        (("--repeats", "5"), "repeats: found 5, allowed: 6 or more"),
        (("--device", "moon"), "device: found 'moon'"),
        (("--precision", "int8"), "precision: found 'int8'"),
        (("--set", "supernet.macs=[0, 0.001]"), "none has 0 to 160 MACs"),
        (("--data", "x.yaml"), "one of --data and --supernet"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2_of_steps(
    octnas: Octnas, extra: tuple[str, ...], message: str
) -> None:
    result = octnas(*COMMAND, *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
