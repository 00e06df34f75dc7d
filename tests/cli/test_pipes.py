"""Pipes in the place of files: nothing waits for whoever might write to them."""

import os
import shutil
from pathlib import Path

import pytest

from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT

PIPE = "no regular file, which is needed here"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "command",
    [
        *("architecture show FIFO", "architecture validate FIFO", "cost --architecture FIFO"),
        *("architecture validate a.json --space FIFO", "architecture diff a.json FIFO"),
        *("report FIFO", "run FIFO", "plan FIFO", "latency FIFO", "slurm FIFO --out out"),
        f"data {EXPERIMENT} --set supernet.weights=FIFO --set space.stride_mode=timm",
    ],
)
def test_a_pipe_is_one_line(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Architecture("resnet18", (3, 32, 32), {"layer1": 0.5}).save("a.json")
    os.mkfifo("fifo")
    refused = octnas(*command.replace("FIFO", "fifo").split())
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.startswith("octnas: ")
    assert "fifo: cannot be read" in line
    assert PIPE in line


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "compared"),
    [
        *((name, True) for name in ("config.yaml", "space/stage.json", "space/space.json")),
        *((name, True) for name in ("looks.jsonl", "search/candidates.json")),
        *((name, False) for name in ("run.json", "tracking.json", "owner/99.json")),
        *((name, False) for name in ("search/study.journal", "retrain/x/checkpoints/y")),
    ],
)
def test_one_in_a_run_directory_too(
    octnas: Octnas,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    compared: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("run", "other"):
        shutil.copytree(finished / "runs" / "tiny", tmp_path / run)
    pipe = tmp_path / "run" / name
    pipe.unlink(missing_ok=True)
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    commands = [["report", "run"], ["run", "run", "--fresh", "data"]]
    if compared:
        commands.append(["compare", "run", "other"])
    for first, *others in commands:
        places = {run: str(tmp_path / run) for run in ("run", "other")}
        refused = octnas(first, *(places.get(word, word) for word in others))
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert str(pipe) in line
        assert PIPE in line or line.endswith("': is a pipe or a device; remove it")
    assert (tmp_path / "run" / "report" / "index.html").exists()
