"""Which settings decide the results of a stage."""

from pathlib import Path
from typing import Any

import pytest

from octnas.pipeline.fingerprints import fingerprint
from tests.loading import load_config


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    return path


def of(tmp_path: Path, stage: str, *overrides: str) -> dict[str, Any]:
    (tmp_path / "e.yaml").write_text("name: e\n")
    return fingerprint(load_config(tmp_path / "e.yaml", overrides), stage)


@pytest.mark.parametrize(
    ("stage", "setting", "same", "other"),
    [
        ("search", "search.score", "converted", "supernet"),
        ("search", "search.measure", "loss", "kl"),
        ("retrain", "retrain.weights", "original", "scratch"),
    ],
)
def test_a_default_is_what_it_stands_for(
    tmp_path: Path, weights: Path, stage: str, setting: str, same: str, other: str
) -> None:
    given = f"space.weights={weights}"
    # Given, since recipes differ by whether weights are trained already.
    recipe = "retrain.recipe={epochs: 11, lr: 0.01, warmup_epochs: 0.5}"
    default, found, changed = (
        of(tmp_path, stage, given, recipe, f"{setting}={value}") for value in ("auto", same, other)
    )
    assert default == found != changed


def test_networks_may_build_on_the_supernet(tmp_path: Path, weights: Path) -> None:
    given = (f"space.weights={weights}", "search.score=supernet")
    found = of(tmp_path, "retrain", *given, "retrain.weights=supernet")
    inputs = {key for key in found if key.startswith("input.")}
    assert inputs == {"input.supernet", "input.search", "input.convert"}
    scratch = of(tmp_path, "retrain", "retrain.weights=supernet")
    assert {key for key in scratch if key.startswith("input.")} == inputs - {"input.convert"}


@pytest.mark.parametrize(
    ("settings", "teacher"),
    [
        ((), "largest"),
        (("space.weights=W",), "original"),
        (("space.weights=W", "supernet.sampling=learnable"), "largest"),
        (("space.weights=W", "supernet.teacher=none"), "none"),
        (("supernet.weights=W", "space.stride_mode=timm"), "largest"),
    ],
)
def test_the_teacher_of_a_supernet(
    tmp_path: Path, weights: Path, settings: tuple[str, ...], teacher: str
) -> None:
    """Runs of earlier versions recorded one in any case."""
    given = [setting.replace("W", str(weights)) for setting in settings]
    assert of(tmp_path, "supernet", *given)["supernet.teacher"] == teacher


def test_distillation_counts_where_there_is_a_teacher(tmp_path: Path, weights: Path) -> None:
    taught, scratch = (f"space.weights={weights}",), ("retrain.weights=scratch",)
    for settings, counts in ((taught, True), ((*taught, *scratch), False), (scratch, False)):
        changed = (
            of(tmp_path, "retrain", *settings, f"retrain.distillation={value}")
            for value in ("{temperature: 4}", "null")
        )
        before = of(tmp_path, "retrain", *settings)
        assert [one != before for one in changed] == [counts, counts]
