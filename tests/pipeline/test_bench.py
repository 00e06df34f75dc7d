"""Interleaved methods of training, with sleeps instead of steps."""

import time

import pytest

from octnas.errors import SettingError
from octnas.pipeline.bench import StepBenchSettings, Steps, bench_steps


def method(seconds: float, networks: int, seen: list[range]) -> Steps:
    def steps(begin: int, end: int) -> int:
        seen.append(range(begin, end))
        time.sleep(seconds * (end - begin))
        return networks * (end - begin)

    return steps


def test_rates_and_ratios() -> None:
    seen: list[range] = []
    settings = StepBenchSettings(batch_size=8, steps=2, repeats=6)
    found = bench_steps({"one": method(0.002, 1, seen), "three": method(0.006, 3, [])}, settings)
    one, three = found.rows
    assert (one.what, one.networks, three.what, three.networks) == ("one", 1, "three", 3)
    assert one.time.value == 1
    # Sleeps may be long, never short.
    assert 0 < one.steps_per_second <= 500
    assert 0 < three.steps_per_second <= 1000 / 6
    assert three.images_per_second == pytest.approx(8 * three.steps_per_second)
    assert three.time.low <= three.time.value <= three.time.high
    # Every round continues where the previous one ended, warm-up included.
    assert [number for turn in seen for number in turn] == list(range(2 * (6 + 2)))
    assert found.to_dict()["rows"][1]["time"]["value"] == three.time.value


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("batch", {"batch_size": 1}),
        ("precision", {"precision": "int8"}),
        ("threads", {"threads": -1}),
        ("steps", {"steps": 0}),
        ("repeats", {"repeats": 5}),
    ],
)
def test_settings_out_of_range(key: str, change: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=key):
        StepBenchSettings(**change)  # type: ignore[arg-type]
