"""A search under budgets on latency and activation memory."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from octnas.errors import ConfigError, LatencyError
from octnas.io.files import write_json
from octnas.measure import backends
from octnas.pipeline.latency import experiment_space
from octnas.pipeline.search import search
from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny
from tests.space.test_latency import small, table_of

BUDGETS = "space.budgets=[{latency_share: 0.9}, {activation_share: 0.7}, {uniform: 0.5}]"


def test_a_budget_on_latency_needs_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"latency\.table: found '', allowed: a table measured"):
        open_tiny(tmp_path, BUDGETS)
    with pytest.raises(ConfigError, match=r"latency\.table: .*nowhere\.json: cannot be read"):
        open_tiny(tmp_path, BUDGETS, "latency.table=nowhere.json")


@pytest.mark.parametrize("content", ["nonsense", "{}", "other"])
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of(small()).to_dict()) if content == "other" else content)
    run = open_tiny(tmp_path, BUDGETS, f"latency.table={path}", stages=("data",))
    with pytest.raises(LatencyError) as caught:
        run_stages(run, ("data",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "device", "said"),
    [
        ({"backend": "onnxruntime"}, "cpu", "not installed"),
        ({"backend": "openvino"}, "cpu", "not installed"),
        ({"backend": "tvm"}, "cpu", "backend: found 'tvm'"),
        ({"precision": "int4"}, "cpu", "precision: found 'int4'"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "cpu", "float32 with onnxruntime"),
        # To torch it is the same device.
        ({"backend": "onnxruntime"}, "cpu:0", "device: found 'cpu:0', allowed: cpu with"),
    ],
)
def test_what_could_not_be_measured_is_said_before_anything_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    device: str,
    said: str,
) -> None:
    """As where a table comes from another device, by `octnas latency import`."""
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    path = tmp_path / "table.json"
    space = experiment_space(EXPERIMENT, TINY)
    write_json(path, table_of(space, device="phone", **values).to_dict())
    settings = (BUDGETS, f"latency.table={path}", f"latency.device={device}")
    with pytest.raises(LatencyError, match=re.escape(said)) as caught:
        run_stages(open_tiny(tmp_path, *settings), ("data",))
    message = str(caught.value)
    assert message.startswith("latency.table: ")
    assert message.endswith("set latency.measure=false to skip measuring")
    assert "\n" not in message
    run = open_tiny(tmp_path, *settings, "latency.measure=false")
    run_stages(run, ("data",))
    # That may be changed, or the search be on another machine.
    again = open_tiny(tmp_path, *settings)
    with pytest.raises(LatencyError, match=re.escape(said)):
        search(again)
    assert not again.directory.stage("search").exists()


def test_what_can_be_measured_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    path = tmp_path / "table.json"
    space = experiment_space(EXPERIMENT, TINY)
    write_json(path, table_of(space, device="phone", backend="onnxruntime").to_dict())
    run_stages(open_tiny(tmp_path, BUDGETS, f"latency.table={path}"), ("data",))
