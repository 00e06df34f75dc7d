"""What is loaded by what, in processes of their own (DESIGN §4)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import octnas

VALUES = sorted(
    f"{package}.{path.stem}"
    for package in ("io", "results", "runtime", "space")
    for path in (Path(octnas.__file__).parent / package).glob("[!_]*.py")
)
HEAVY = ["optuna", "ray", "mlflow", "pydantic"]


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after some code has run in a fresh interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_values_need_no_torch() -> None:
    names = ", ".join(f"octnas.{name}" for name in VALUES)
    modules = loaded_by(f"import octnas, {names}")
    assert {f"octnas.{name}" for name in VALUES} <= modules
    assert not modules & {"torch", "timm", "torchvision", "octnas.nn", *HEAVY}


def test_octnas_is_lazy() -> None:
    modules = loaded_by("import octnas; octnas.__version__; dir(octnas)")
    assert {name for name in modules if name.startswith("octnas")} == {"octnas", "octnas.latency"}
    assert not modules & {"numpy", "torch", "timm", *HEAVY}


@pytest.mark.parametrize(
    "code",
    [
        "import octnas; octnas.latency.LatencyTable.predict",
        "from octnas.latency import LatencyTable",
    ],
)
def test_latency_keeps_its_former_home(code: str) -> None:
    modules = loaded_by(code)
    assert "octnas.space.latency" in modules
    assert not modules & {"torch", "timm", *HEAVY}


def test_light_names_stay_light() -> None:
    modules = loaded_by("import octnas; octnas.Architecture, octnas.SearchSpace")
    assert "octnas.space.search_space" in modules
    assert "torch" not in modules


def test_the_search_and_the_report_need_no_torch() -> None:
    modules = loaded_by("import octnas.search.study, octnas.search.samplers, octnas.report.page")
    assert {"optuna", "plotly"} <= modules
    assert not modules & {"torch", "timm", "octnas.nn", "octnas.training"}


def test_networks_need_no_search_tools() -> None:
    packages = ("octnas.nn", "octnas.training", "octnas.export")
    code = (
        "import importlib, pkgutil\n"
        f"for package in map(importlib.import_module, {packages}):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)"
    )
    modules = loaded_by(code)
    assert {"torch", "timm", *packages} <= modules
    assert not modules & set(HEAVY)


def test_every_public_name_is_there() -> None:
    import octnas

    for name in octnas.__all__:
        assert getattr(octnas, name).__name__ == name
        assert name in dir(octnas)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        octnas.nothing  # noqa: B018
