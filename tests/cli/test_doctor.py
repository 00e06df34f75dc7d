import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

from octnas.pipeline import doctor
from tests.cli.conftest import Octnas
from tests.homes import without_home

WORKS: dict[str, str] = {}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trying imports, which takes seconds."""
    monkeypatch.setattr(doctor, "_broken", lambda modules: WORKS)


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


def test_every_dependency_is_looked_at() -> None:
    """Those that octnas states, and no others."""
    stated = {line.split(">=")[0].split("[")[0] for line in requires("octnas") or ()}
    optional = {name for _, parts in doctor.OPTIONAL.values() for name in parts}
    development = {"hypothesis", "import-linter", "mypy", "playwright", "pytest", "pytest-timeout"}
    known = set(doctor.REQUIRED) | optional
    assert stated - known <= development | {"ruff", "pip-licenses", "octnas"} | {
        line for line in stated if line.startswith("types-")
    }
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
