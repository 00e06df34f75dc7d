"""``octnas slurm`` as a user types it, with stand-ins for SLURM's programs.

A whole run without its MLflow server, and what `octnas sync` makes of it.
"""

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch

from octnas.nn.load import load
from octnas.pipeline import doctor
from octnas.pipeline.records import read_results
from octnas.pipeline.run import Run
from octnas.pipeline.slurm import JOBS
from octnas.pipeline.stages import run_stages
from tests.cli.conftest import Octnas
from tests.homes import without_home
from tests.pipeline.test_models_in_mlflow import loaded_elsewhere
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny
from tests.tracking.servers import Held, free_port, held, mlflow_server

WORKS: dict[str, str] = {}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trying imports, which takes seconds."""
    monkeypatch.setattr(doctor, "_broken", lambda: WORKS)


def without(monkeypatch: pytest.MonkeyPatch, name: str, found: str | None = None) -> None:
    """As if a distribution were not installed, or in another version."""
    real = doctor.version

    def version(other: str) -> str:
        if other != name:
            return real(other)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "version", version)


def test_every_dependency_is_checked() -> None:
    """Those that octnas states, and no others."""
    stated = {line.split(">=")[0].split("[")[0] for line in requires("octnas") or ()}
    optional = {name for _, parts in doctor.OPTIONAL.values() for name in parts}
    development = {"hypothesis", "import-linter", "mypy", "octnas", "pip-licenses", "playwright"}
    development |= {"pytest", "pytest-timeout", "pytest-xdist", "ruff"}
    known = set(doctor.lower_bounds()) | optional
    assert {one for one in stated - known if not one.startswith("types-")} <= development
    assert known - stated == {"tensorrt"}


@pytest.mark.usefixtures("importable")
def test_all_is_well(octnas: Octnas, tmp_path: Path) -> None:
    result = octnas("doctor", str(tmp_path / "new" / "runs"))
    assert result.code == 0, result.out
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in result.out
    for name in ("torch", "timm", "optuna", "ray", "mlflow", "numpy"):
        assert f"  {name} {doctor.installed(name)}\n" in result.out
    assert "GB free in" in result.out
    assert "/dev/shm" in result.out
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("importable")
def test_a_user_without_a_home_is_told(octnas: Octnas, monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    result = octnas("doctor")
    assert result.code == 0, result.err
    assert (
        "  cache of images: data.cache.folder: found '~/.cache/octnas', this user has no home "
        "directory; give an absolute path\n"
    ) in result.out


@pytest.mark.usefixtures("importable")
def test_what_is_optional_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    found = doctor.examine(Path())
    assert (
        'ONNX and OpenVINO: onnxruntime not installed; pip install "octnas[export]"'
        in found.sections["Optional"]
    )
    assert found.problems == ()


@pytest.mark.usefixtures("importable")
def test_what_is_needed_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
    octnas: Octnas,
) -> None:
    without(monkeypatch, "timm")
    result = octnas("doctor")
    assert result.code == 1
    assert 'timm: not installed; pip install "timm>=' in result.out


@pytest.mark.usefixtures("importable")
def test_a_version_that_is_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "optuna", "1.5.0")
    (problem,) = doctor.examine(Path()).problems
    assert problem.startswith("optuna: octnas needs")
    assert 'pip install "optuna>=' in problem


def test_a_package_that_cannot_be_imported_is_said_and_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("torch", "raise OSError('libcudart.so: not found')"), ("openvino", "1/0")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_FRAGILE", ("torch", "openvino"))
    found = doctor.examine(Path())
    (problem,) = found.problems
    assert problem.startswith("torch: OSError: libcudart.so: not found; pip install --force")
    (line,) = (one for one in found.sections["Optional"] if one.startswith("ONNX"))
    assert "openvino is broken (ZeroDivisionError" in line


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, octnas.pipeline.doctor as d; d.examine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_driver_that_does_not_work_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._gpus() == ["nvidia-smi does not work (exit code 9)"]
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 81000 MiB, 550.54'\n")
    assert doctor._gpus() == ["NVIDIA H100, 81559 MiB, 81000 MiB free, driver 550.54"]


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
    jobs = [stage for stage in JOBS if stage != "original"]
    assert len(calls.read_text().splitlines()) == len(jobs)
    for stage in jobs:
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
    gpus = {file.stem: file.read_text() for file in Path("a b").glob("*.sbatch")}
    assert gpus.keys() == {stage for stage in JOBS if stage != "original"}
    assert "--gpus-per-node=4" in gpus["supernet"]
    assert "--processes" in gpus["supernet"]
    for stage in ("search", "retrain"):
        assert "--gpus-per-node=1" in gpus[stage]
    for stage in ("data", "export", "report"):
        assert "--gpus" not in gpus[stage]
        assert command(Path("a b"), stage)[-1] == "device=cpu"
    program, *rest = command(Path("a b"), "retrain")
    assert Path(program).parent == Path(sys.executable).parent or program == "octnas"
    run = str(tmp_path / "runs" / "digits_scratch")
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
        (("--gpus", "3"), "batch_size: found 64, allowed: a multiple of the 3 processes"),
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


def test_a_run_directory_that_the_jobs_would_refuse_is_refused_at_once(
    octnas: Octnas, tmp_path: Path
) -> None:
    """As it would be with the batch files in it, too."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.yaml").write_text("precious")
    for run, out, message in (
        ("thesis", "jobs", "thesis: not a run directory, and not empty; give a new"),
        ("run", "run/jobs", "run/jobs: is inside the run directory "),
        ("run", "run", "run: is inside the run directory "),
    ):
        places = ("--out", str(tmp_path / out), "--run-dir", str(tmp_path / run))
        result = octnas("slurm", str(EXPERIMENT), *places)
        assert result.code == 2
        assert result.err.startswith(f"octnas: {tmp_path}/{message}")
        assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.slow
def test_a_whole_run_without_its_server_and_a_sync(octnas: Octnas, tmp_path: Path) -> None:
    port = free_port()
    uri, lines = f"http://127.0.0.1:{port}", list[str]()
    run = open_tiny(tmp_path, f"tracking.uri={uri}", lines=lines)
    run_stages(run)
    directory = tmp_path / "runs" / "tiny"
    assert [line for line in lines if "no MLflow server answers" in line]
    assert f"`octnas sync {directory}` sends them" in lines[-1]
    away = octnas("sync", str(directory))
    assert away.code == 2
    assert len(away.err.splitlines()) == 1
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", port):
        result = octnas("sync", str(directory))
        assert result.code == 0, result.err
        networks = [result.network for result in read_results(run)]
        assert f"{len(networks)} models" in result.out
        first = check_records(run, port)
        assert octnas("sync", str(directory)).out == f"nothing to send to {uri}\n"
        assert held(port, "tiny") == first
        images = torch.randn((2, *run.space.input_size), generator=torch.Generator().manual_seed(1))
        network = load(directory / "export" / "searched-uniform-0.75")
        with torch.inference_mode():
            expected = network(images)
        assert expected.abs().max() > 1e-2
        found = loaded_elsewhere(uri, "models:/tiny@uniform-0-75", images, tmp_path)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def check_records(run: Run, port: int) -> Held:
    """What the server holds of a whole tiny run, exactly."""
    found = held(port, "tiny")
    networks = [result.network for result in read_results(run)]
    names = [network.name for network in networks]
    assert found.names == sorted(["tiny", "supernet", "search", *names])
    assert set(found.status.values()) == {"FINISHED"}
    assert found.parents == dict.fromkeys(["supernet", "search", *names], "tiny")
    assert found.metrics["supernet"] == {"train_loss": [1, 2], "lr": [1, 2]}
    assert found.metrics["search"]["macs"] == list(range(20))
    for name in names:
        for seed in (0, 1):
            assert found.metrics[name][f"seed_{seed}/train_loss"] == [1, 2]
        assert found.metrics[name]["val_top1"] == [2]
    assert "trials.json" in found.artifacts["search"]
    assert "report/figures/front.json" in found.artifacts["tiny"]
    assert found.versions == {"tiny": [str(1 + index) for index in range(len(networks))]}
    return found
