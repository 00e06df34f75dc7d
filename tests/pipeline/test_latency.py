"""A search under budgets on latency and activation memory."""

import json
from pathlib import Path

import pytest

from octnas.errors import ConfigError, LatencyError, RunDirectoryError
from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny import open_tiny
from tests.test_latency import small, table_of

BUDGETS = "space.budgets=[{latency_share: 0.9}, {activation_share: 0.7}, {uniform: 0.5}]"


def test_a_budget_on_latency_needs_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a table of `octnas latency` in latency\.table"):
        open_tiny(tmp_path, BUDGETS)
    with pytest.raises(ConfigError, match=r"latency\.table: .*nowhere\.json: cannot be read"):
        open_tiny(tmp_path, BUDGETS, "latency.table=nowhere.json")


@pytest.mark.parametrize("content", ["nonsense", "{}", "other"])
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of(small()).to_dict()) if content == "other" else content)
    run = open_tiny(tmp_path, BUDGETS, f"latency.table={path}", stages=("data",))
    error = RunDirectoryError if content == "nonsense" else LatencyError
    with pytest.raises(error) as caught:
        run_stages(run, ("data",))
    assert "\n" not in str(caught.value)
