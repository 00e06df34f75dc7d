"""``octnas bench --data`` as a user types it; no test looks at how long anything takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octnas.measure import data as module
from octnas.measure.data import DataBenchSettings
from tests.cli.conftest import Octnas
from tests.data.trees import make_tree
from tests.pipeline.tiny import EXPERIMENT


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tree of 14 training images, and turns that are short."""
    measure = module.bench_data

    def short(data: Any, architecture: Any, settings: DataBenchSettings, progress: Any) -> Any:
        return measure(data, architecture, replace(settings, batches=2, repeats=6), progress)

    monkeypatch.setattr(module, "bench_data", short)
    tree = make_tree(tmp_path / "tree")
    data = (
        f"data={{source: folder, root: {tree}, rank_per_class: 3, read_per_class: 2, workers: 0, "
        f"cache: {{folder: {tmp_path / 'cache'}}}}}"
    )
    small = ("space.backbone_args.channels=[4, 8, 8]", "space.input_size=[3, 16, 16]", data)
    sets = [word for override in small for word in ("--set", override)]
    return ["bench", "--data", str(EXPERIMENT), *sets]


def test_a_table_for_a_reader(octnas: Octnas, arguments: list[str]) -> None:
    result = octnas(*arguments, "--batch", "6", "--threads", "1")
    assert result.code == 0
    assert "batches of 6, cpu, float32, threads: 1" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["files", "cache", "step", "step from files", "step from cache"]
    assert "times what files do" in result.out


def test_json(octnas: Octnas, arguments: list[str]) -> None:
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
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas, arguments: list[str], extra: tuple[str, ...], message: str
) -> None:
    result = octnas(*arguments, *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
