"""The export stage, and how `octnas export` selects networks."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from octnas.errors import ExportError, SettingError
from octnas.export import formats
from octnas.pipeline.export import by_architecture, by_budget
from octnas.pipeline.stages import run_stages
from octnas.results.networks import SEARCHED, UNIFORM, VANILLA, Network, Retrained
from octnas.space.architecture import Architecture
from octnas.space.costs import Cost
from tests.export.test_formats import spoilt
from tests.pipeline.tiny import open_tiny


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_package_is_reported_before_any_stage(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "export.formats=[timm, tensorrt]")
    with pytest.raises(ExportError, match="format tensorrt: tensorrt: not installed"):
        run_stages(run)
    assert not run.directory.stage("data").exists()


@pytest.mark.slow
def test_every_network_is_exported_before_refusals_are_reported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "timm": spoilt})
    run = open_tiny(tmp_path / "copy", fresh="export")
    with pytest.raises(ExportError, match="refused on the val images") as caught:
        run_stages(run, ("export",))
    assert len(str(caught.value).splitlines()) == 7
    folder = run.directory.stage("export")
    assert len(list(folder.glob("*/export.json"))) == 7
    assert not list(folder.glob("*/model.safetensors"))
    monkeypatch.undo()
    run_stages(open_tiny(tmp_path / "copy"), ("export",))
    assert len(list(folder.glob("*/model.safetensors"))) == 7


def made(role: str, budget: str, alpha: float, macs: int) -> Retrained:
    architecture = Architecture("resnet18", (3, 64, 64), {"layer1": alpha})
    return Retrained(Network(role, budget, architecture, Cost(macs, 1, 1)), ())


SMALL = made(SEARCHED, "uniform α 0.75", 0.75, 30)
LARGE = made(SEARCHED, "uniform α 0.5", 0.5, 48)
BASELINE = made(UNIFORM, "uniform α 0.5", 0.25, 49)
# The searched network again, as a baseline.
AGAIN = made(UNIFORM, "uniform α 0.75", 0.75, 30)
PLAIN = made(VANILLA, "", 0.0, 100)
RESULTS = (SMALL, AGAIN, LARGE, BASELINE, PLAIN)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("0.5x", LARGE),
        ("0.48x", LARGE),
        (".479x", SMALL),
        ("0.3×", SMALL),
        ("1x", LARGE),
        ("uniform α 0.5", LARGE),
        ("uniform-0.75", SMALL),
        ("Uniform 0.75", SMALL),
    ],
)
def test_budgets(budget: str, expected: Retrained) -> None:
    assert by_budget(RESULTS, budget, vanilla_macs=100) is expected


@pytest.mark.parametrize("budget", ["0.29x", "0.5", "uniform", "", "x", "0.5y"])
def test_unknown_budgets_list_the_known_ones(budget: str) -> None:
    with pytest.raises(SettingError) as caught:
        by_budget(RESULTS, budget, vanilla_macs=100)
    there = "uniform α 0.75 (0.300x), uniform α 0.5 (0.480x), or a share such as 0.5x"
    assert there in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids() -> None:
    for result in (SMALL, LARGE, BASELINE, PLAIN):
        identity = result.network.architecture.id
        assert by_architecture(RESULTS, identity) is result
        assert by_architecture(RESULTS, identity[:6]) is result
    for wrong in ("", "xyz", PLAIN.network.architecture.id + "0"):
        with pytest.raises(SettingError, match=f"{PLAIN.network.architecture.id} \\(vanilla\\)"):
            by_architecture(RESULTS, wrong)
