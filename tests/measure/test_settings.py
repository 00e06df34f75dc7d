"""Every setting that a benchmark cannot have is refused in words, before anything is made."""

import re
from typing import Any

import pytest

from octnas.errors import SettingError
from octnas.measure.settings import BACKENDS, BenchSettings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "train"}, "mode: found 'train', allowed: inference, training"),
        ({"precision": "half"}, "precision: found 'half', allowed: float32, bfloat16"),
        (
            {"backends": ("tvm",)},
            "backends: found 'tvm', allowed: eager, compile, onnxruntime, openvino",
        ),
        (
            {"backends": ("openvino",), "mode": "training"},
            "backends: found 'openvino', allowed: eager, compile",
        ),
        ({"backends": ()}, "backends: found (), allowed: one or more"),
        (
            {"backends": ("eager", "openvino"), "device": "cuda"},
            "device: found 'cuda', allowed: cpu with openvino",
        ),
        (
            {"backends": ("onnxruntime",), "precision": "bfloat16"},
            "precision: found 'bfloat16', allowed: float32 with onnxruntime",
        ),
        (
            {"backends": ("eager", "eager")},
            "backends: found ('eager', 'eager'), allowed: every value once",
        ),
        ({"alphas": {}}, "alphas: found {}, allowed: one or more"),
        ({"batches": ()}, "batch: found (), allowed: one or more"),
        ({"batches": (8, 1, 8)}, "batch: found (8, 1, 8), allowed: every value once"),
        ({"batches": (8, 0)}, "batch: found (8, 0), allowed: 1 or more"),
        ({"input_size": 0}, "input_size: found 0, allowed: 1 or more"),
        ({"threads": -1}, "threads: found -1, allowed: 0 or more"),
        ({"repeats": 5}, "repeats: found 5, allowed: 6 or more"),
        (
            {"alphas": {"0": 0.5}},
            "alphas: found '0', allowed: others; vanilla is always measured",
        ),
    ],
)
def test_what_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
        BenchSettings(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"backends": BACKENDS},
        {"backends": ("eager", "compile"), "mode": "training"},
        {"backends": ("eager", "compile"), "device": "cuda", "precision": "bfloat16"},
        {"threads": 0, "repeats": 6, "input_size": 1, "batches": (1,)},
        {"alphas": {"narrow": {"layer1*": 0.25}}},
    ],
)
def test_what_is_allowed(kwargs: dict[str, Any]) -> None:
    settings = BenchSettings(**kwargs)
    assert {key: getattr(settings, key) for key in kwargs} == kwargs


def test_the_paper_is_the_default() -> None:
    assert BenchSettings().alphas == {"0.125": 0.125, "0.25": 0.25, "0.5": 0.5, "0.75": 0.75}
