"""Folders whose names are not UTF-8, which no page, record or batch file can hold."""

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT

NAME = os.fsdecode(b"run\xff")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        *("report RUN", "report RUN --watch", "run RUN", "export RUN", "sync RUN"),
        *("compare RUN other --out c.html", "compare other RUN --out c.html"),
        *("slurm RUN --out jobs", "latency networks RUN"),
        *(f"data {EXPERIMENT} --run-dir RUN", f"slurm {EXPERIMENT} --run-dir RUN --out jobs"),
        f"slurm {EXPERIMENT} --out RUN",
    ],
)
def test_a_run_directory_is_refused(
    octnas: Octnas,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    linked: bool,
) -> None:
    for name in (NAME, "other"):
        shutil.copytree(finished / "runs" / "tiny", tmp_path / name)
    (tmp_path / "link").symlink_to(NAME)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run = "link" if linked else NAME
    refused = octnas(*(run if word == "RUN" else word for word in command.split()))
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    name = repr(f"{tmp_path}/{NAME}" if linked else NAME)
    assert line == f"octnas: {name}: is not UTF-8, so no file could hold it; rename it"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [f"data {EXPERIMENT}", f"slurm {EXPERIMENT} --out jobs"],
)
def test_a_working_directory_is_refused(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)
    refused = octnas(*command.split())
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.endswith(": is not UTF-8, so no file could hold it; rename it")
    assert not list(Path().iterdir())
