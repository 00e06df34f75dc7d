"""``octnas plan`` as a user types it; no test looks at how long anything takes."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT, TINY

SETS = [word for change in (*TINY, "device=cpu") for word in ("--set", change)]
COMMAND = ("plan", str(EXPERIMENT), *SETS, "--steps", "2")


def test_a_table_for_a_reader(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = octnas(*COMMAND)
    assert result.code == 0
    assert "images (from the settings): 256 train, 64 search_val, 64 read, 64 val" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["data", "supernet", "search", "retrain", "total"]
    assert "< 0.01" in result.out
    assert "e-0" not in "".join(rows)
    assert "This is an estimate" in result.out
    assert not list(tmp_path.iterdir())


def test_json(octnas: Octnas, tmp_path: Path) -> None:
    result = octnas(*COMMAND, "--json", "--run-dir", str(tmp_path / "run"))
    document = json.loads(result.out)
    assert document["schema"] == 1
    assert document["machine"]["device"] == "cpu"
    hours = [stage["wall_hours"] for stage in document["stages"]]
    assert document["total"]["wall_hours"] == pytest.approx(sum(hours))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--steps", "1"), "steps: found 1, allowed: 2 or more"),
        (("--set", "device=moon"), "device: found 'moon'"),
        (("--set", "space.budgets=[{share: 0.01}]"), "below the smallest"),
        (("--set", "search.trials=0"), "trials: found 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas, extra: tuple[str, ...], message: str
) -> None:
    result = octnas(*COMMAND, *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
