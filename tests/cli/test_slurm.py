"""``octnas slurm`` as a user types it, with stand-ins for SLURM's programs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from octnas.pipeline.slurm import JOBS
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT, TINY

# Runs a job at once, and again each time that it was put back. The supernet's is signalled when
# it has written its first checkpoint.
SBATCH = """#!/bin/bash
echo "$*" >> "$CALLS"
for file; do :; done
export SLURM_JOB_ID=$(wc -l < "$CALLS")
while
    rm -f "$CALLS.requeue"
    bash "$file" >> "$CALLS.out" 2>&1 &
    job=$!
    if [ "$file" = supernet.sbatch ] && [ ! -e "$CALLS.signalled" ]; then
        until compgen -G "$RUN/supernet/checkpoints/step-*" > /dev/null; do
            kill -0 $job || break
            sleep 0.05
        done
        kill -USR1 $job && touch "$CALLS.signalled"
    fi
    wait $job
    code=$?
    [ -e "$CALLS.requeue" ]
do :; done
[ $code = 0 ] || exit $code
echo "$SLURM_JOB_ID"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS.out"
touch "$CALLS.requeue"
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tiny_experiment_with_a_job_that_is_put_back(octnas: Octnas, tmp_path: Path) -> None:
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run, jobs, calls = tmp_path / "the 'run'", tmp_path / 'the "jobs"', tmp_path / "calls"
    overrides = (*TINY, "device=cpu", "tracking.enabled=false", "supernet.recipe.epochs=30")
    sets = [
        word
        for change in (*overrides, "supernet.recipe.checkpoint_seconds=0")
        for word in ("--set", change)
    ]
    result = octnas("slurm", str(EXPERIMENT), "--out", str(jobs), "--run-dir", str(run), *sets)
    assert result.code == 0
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "RUN": str(run),
    }
    subprocess.run(shlex.split(result.out), env=environment, check=True)
    out = Path(f"{calls}.out").read_text()
    assert out.count("scontrol requeue 2") == 1
    assert "Traceback" not in out
    assert len(calls.read_text().splitlines()) == len(JOBS)
    for stage in JOBS:
        assert json.loads((run / stage / "stage.json").read_text())["finished"]
    history = json.loads((run / "supernet" / "history.json").read_text())["epochs"]
    assert [row["epoch"] for row in history] == [*range(1, 31)]
    assert (run / "report" / "index.html").exists()


def command(path: Path, stage: str) -> list[str]:
    """Program and arguments of a job."""
    text = (path / f"{stage}.sbatch").read_text()
    line = next(line for line in text.splitlines() if line.startswith("command=("))
    return shlex.split(line.removeprefix("command=(").removesuffix(")"))


def test_files_for_gpus(octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--gpus", "4", "--time", "08:00:00", "--set", "device=cuda")
    result = octnas("slurm", str(EXPERIMENT), "--out", "a b", *options)
    assert (result.code, result.out) == (0, "bash 'a b/submit.sh'\n")
    assert not (tmp_path / "runs").exists()
    gpus = {stage: (Path("a b") / f"{stage}.sbatch").read_text() for stage in JOBS}
    assert "--gpus-per-node=4" in gpus["supernet"]
    assert "--workers" in gpus["supernet"]
    for stage in ("search", "retrain"):
        assert "--gpus-per-node=1" in gpus[stage]
    for stage in ("data", "export", "report"):
        assert "--gpus" not in gpus[stage]
        assert command(Path("a b"), stage)[-1] == "device=cpu"
    program, *rest = command(Path("a b"), "retrain")
    assert Path(program).parent == Path(sys.executable).parent or program == "octnas"
    run = str(tmp_path / "runs" / "digits")
    sets = ["--set", "device=cuda", "--set", "device=cuda"]
    assert rest == ["retrain", str(EXPERIMENT), "--run-dir", run, *sets]


def test_no_password_in_a_file(octnas: Octnas, tmp_path: Path) -> None:
    storage = "search.storage=postgresql://me:secret@host/name"
    result = octnas("slurm", str(EXPERIMENT), "--out", str(tmp_path), "--set", storage)
    assert result.code == 0
    assert not [path for path in tmp_path.iterdir() if "secret" in path.read_text()]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--partition", "a b"), "partition: found 'a b'"),
        (("--time", "tomorrow"), "time: found 'tomorrow'"),
        (("--mem", "lots"), "mem: found 'lots'"),
        (("--gpus", "3"), "batch_size: found 64, allowed: a multiple of the 3 ranks"),
        (("--set", "search.trials=0"), "trials: found 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas, tmp_path: Path, extra: tuple[str, ...], message: str
) -> None:
    result = octnas("slurm", str(EXPERIMENT), "--out", str(tmp_path), *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_search_that_needs_short_trainings_waits_for_them(octnas: Octnas, tmp_path: Path) -> None:
    options = ("--gpus", "1", "--set", "search.proxies=true")
    assert octnas("slurm", str(EXPERIMENT), "--out", str(tmp_path), *options).code == 0
    submitted = re.findall(r"(\w+)\.sbatch", (tmp_path / "submit.sh").read_text())
    assert submitted == ["data", "supernet", "proxies", "search", "retrain", "export", "report"]
    assert command(tmp_path, "proxies")[1] == "proxies"
    assert "--gpus-per-node=1" in (tmp_path / "proxies.sbatch").read_text()


def test_a_run_directory_that_the_jobs_would_refuse_is_refused_at_once(
    octnas: Octnas, tmp_path: Path
) -> None:
    """As it would be with the batch files in it, too."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.yaml").write_text("precious")
    for run, out, message in (
        ("thesis", "jobs", "thesis: is not a run directory, and holds other files; give a new"),
        ("run", "run/jobs", "run/jobs: lies in the run directory, "),
        ("run", "run", "run: lies in the run directory, "),
    ):
        places = ("--out", str(tmp_path / out), "--run-dir", str(tmp_path / run))
        result = octnas("slurm", str(EXPERIMENT), *places)
        assert result.code == 2
        assert result.err.startswith(f"octnas: {tmp_path}/{message}")
        assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
