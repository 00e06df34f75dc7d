"""What a benchmark reports, with times that are given instead of measured."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from octnas import cost
from octnas.errors import ArchitectureError, SettingError, UnsupportedModelError
from octnas.measure import bench as bench_module
from octnas.measure.backends import Step
from octnas.measure.bench import BenchResult, bench
from octnas.measure.settings import BenchSettings

MODEL, SIDE = "thumbnail_resnet", 16
ALPHAS: dict[str, Any] = {"0.5": 0.5, "stages": {"layer1*": 0.25, "layer2*": 0.75}}
LABELS = ["0", *ALPHAS]
# Median seconds by backend and label: vanilla is best in the one, octave in the other.
TIMES = {
    ("eager", "0"): 2.0,
    ("eager", "0.5"): 1.0,
    ("eager", "stages"): 3.0,
    ("compile", "0"): 1.5,
    ("compile", "0.5"): 1.25,
    ("compile", "stages"): 1.5,
}
Key = tuple[str, str]


def small(**kwargs: Any) -> BenchSettings:
    given = {"model": MODEL, "input_size": SIDE, "alphas": ALPHAS, "batches": (1, 3), "repeats": 6}
    return BenchSettings(**{**given, **kwargs})


@pytest.fixture
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> list[list[Key]]:
    """Let every network run once and take its time of the table; which ones, by batch size."""
    asked: list[list[Key]] = []

    def turns(functions: Mapping[Key, Callable[[], None]], repeats: int) -> dict[Key, np.ndarray]:
        asked.append(list(functions))
        for function in functions.values():
            function()
        # Medians as in the table, of an odd shape so that quartiles are not all the same.
        shape = np.array([1.0, 1.0, 0.5, 1.0, 2.0, 1.0])
        assert repeats == len(shape)
        return {key: TIMES[key] * shape for key in functions}

    monkeypatch.setattr(bench_module, "interleave", turns)
    return asked


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for compiled networks."""

    def prepare(*args: Any) -> Step:
        return lambda: None

    monkeypatch.setattr(bench_module, "prepare", prepare)


def check_macs(found: BenchResult, multiple: int = 1) -> None:
    size = (3, SIDE, SIDE)
    base = cost(MODEL, 0.0, input_size=size).macs
    for row in found.rows:
        alphas = ALPHAS[row.alpha] if row.alpha != "0" else 0.0
        macs = cost(MODEL, alphas, input_size=size, channel_multiple=multiple).macs
        assert row.macs == macs
        assert row.macs_ratio == macs / base
        assert row.quotient == row.latency_ratio / row.macs_ratio


@pytest.mark.parametrize("multiple", [1, 8])
def test_every_network_has_a_row(fixed_times: list[list[Key]], multiple: int) -> None:
    found = bench(small(channel_multiple=multiple))
    assert [(row.batch, row.alpha) for row in found.rows] == [
        (b, a) for b in (1, 3) for a in LABELS
    ]
    assert {row.backend for row in found.rows} == {"eager"}
    assert fixed_times == [[("eager", label) for label in LABELS]] * 2
    check_macs(found, multiple)
    for row in found.rows:
        assert row.milliseconds == 1e3 * TIMES["eager", row.alpha]
        assert row.latency_ratio == TIMES["eager", row.alpha] / TIMES["eager", "0"]
        assert row.latency_low == row.latency_high == row.latency_ratio
        assert not row.undecided
        assert row.kept_bytes is row.kept_ratio is None
        # Quartiles of .5, 1, 1, 1, 1 and 2 are all 1.
        assert row.spread == 0.0


def test_vanilla_is_exactly_one(fixed_times: list[list[Key]]) -> None:
    rows = [row for row in bench(small(mode="training")).rows if row.alpha == "0"]
    assert len(rows) == 2
    for row in rows:
        ratios = (row.latency_ratio, row.latency_low, row.latency_high, row.macs_ratio)
        assert {*ratios, row.quotient, row.kept_ratio} == {1.0}
        assert not row.undecided


@pytest.mark.usefixtures("no_compiler")
def test_the_best_meets_the_best(fixed_times: list[list[Key]]) -> None:
    found = bench(small(backends=("eager", "compile"), batches=(2,)))
    assert [(row.backend, row.alpha) for row in found.rows] == list(TIMES)
    check_macs(found)
    half, stages = found.best
    assert (half.alpha, half.octave_backend, half.vanilla_backend) == ("0.5", "eager", "compile")
    assert (stages.alpha, stages.octave_backend) == ("stages", "compile")
    assert stages.vanilla_backend == "compile"
    assert half.ratio.value == 1.0 / 1.5
    assert not half.ratio.undecided
    assert stages.ratio.value == 1.0
    assert stages.ratio.undecided
    # Within its own backend it is against that backend's vanilla network.
    by_key = {(row.backend, row.alpha): row for row in found.rows}
    assert by_key["compile", "0.5"].latency_ratio == 1.25 / 1.5
    assert by_key["compile", "stages"].undecided
    assert half.macs_ratio == by_key["eager", "0.5"].macs_ratio


def test_the_result_is_json(fixed_times: list[list[Key]]) -> None:
    found = bench(small(mode="training", batches=(2,)))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert document["settings"]["model"] == MODEL
    assert document["settings"]["alphas"] == ALPHAS
    for row, source in zip(document["rows"], found.rows, strict=True):
        assert {"backend", "alpha", "batch", "quotient"} <= set(row)
        assert row["quotient"] == source.quotient
    assert [best["alpha"] for best in document["best"]] == list(ALPHAS)
    assert set(document["best"][0]["ratio"]) == {"value", "low", "high"}
    assert document["environment"]["torch"] == torch.__version__


def test_training_tells_what_is_kept(fixed_times: list[list[Key]]) -> None:
    rows = bench(small(mode="training", batches=(2,))).rows
    kept = [row.kept_bytes for row in rows]
    for row in rows:
        assert row.kept_bytes is not None
        assert kept[0] is not None
        assert list(row.kept_bytes) == ["stem", "layer1", "layer2", "layer3", "head"]
        assert row.kept_ratio == sum(row.kept_bytes.values()) / sum(kept[0].values())
        assert row.alpha == "0" or row.kept_ratio < 1.0


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_with_the_real_clock(mode: str) -> None:
    """Whatever it says, it is a number, and the machine's settings are as before."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    lines: list[str] = []
    found = bench(small(mode=mode, batches=(1,), threads=1), log=lines.append)
    assert len(found.rows) == len(LABELS)
    for row in found.rows:
        assert row.milliseconds > 0
        assert 0 < row.latency_low <= row.latency_high
        assert row.spread >= 0
    check_macs(found)
    assert lines == [*(f"batch 1: eager, α {label}" for label in LABELS), "batch 1: timing"]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("onnxruntime") and find_spec("openvino")), reason="extra")
def test_all_backends() -> None:
    backends = ("eager", "compile", "onnxruntime", "openvino")
    found = bench(small(backends=backends, batches=(1,)))
    assert [row.backend for row in found.rows] == [b for b in backends for _ in LABELS]
    check_macs(found)
    assert {best.octave_backend for best in found.best} <= set(backends)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"model": "resnet5"}, SettingError, "backbone: found 'resnet5'"),
        ({"model": "vit_tiny_patch16_224"}, UnsupportedModelError, "allowed: timm's ResNets"),
        ({"alphas": {"2": 2.0}}, ArchitectureError, "α of site .* found 2.0, allowed: 0 to 1"),
        ({"alphas": {"x": {"layer9*": 0.5}}}, ArchitectureError, "'layer9.*' matches no site"),
        ({"device": "nonsense"}, SettingError, "device: found 'nonsense'"),
        ({"channel_multiple": 0}, SettingError, "channel_multiple: found 0, allowed: 1 to 65536"),
        ({"device": "meta"}, SettingError, "device: found 'meta'"),
    ],
)
def test_what_is_refused(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bench(small(**kwargs))


def test_threads_are_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Step:
        assert torch.get_num_threads() == 2
        raise RuntimeError("stop")

    before = torch.get_num_threads()
    monkeypatch.setattr(bench_module, "prepare", fail)
    with pytest.raises(RuntimeError, match="stop"):
        bench(small(threads=2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("side", "alphas", "batches", "fits"),
    [
        (4, {"0.5": 0.5}, (2, 1), False),  # the last map has one pixel
        (4, {"0.5": 0.5}, (2,), True),
        (8, {"0.5": {"*": 1.0}}, (1,), False),  # 2×2 pixels at high, one at low resolution
        (8, {"0.5": 0.5}, (1,), True),
    ],
)
def test_training_needs_two_values_per_channel(
    fixed_times: list[list[Key]],
    side: int,
    alphas: dict[str, Any],
    batches: tuple[int, ...],
    fits: bool,
) -> None:
    settings = small(mode="training", input_size=side, alphas=alphas, batches=batches)
    if fits:
        assert bench(settings).rows
        return
    with pytest.raises(SettingError, match=r"^batch: found 1, allowed: .*input_size") as caught:
        bench(settings)
    assert "\n" not in str(caught.value)
    assert fixed_times == []  # before anything was measured
    assert bench(small(input_size=side, alphas=alphas, batches=batches)).rows
