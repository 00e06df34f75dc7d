"""Pipes in the place of files: nothing waits for whoever might write to them."""

import os
from pathlib import Path

import pytest

from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT

PIPE = "not a regular file"


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
