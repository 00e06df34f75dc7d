from pathlib import Path

import pytest

from octnas.errors import BudgetError, ConfigError
from octnas.pipeline.stages import run_stages
from octnas.run_directory import read_json
from tests.pipeline.tiny import open_tiny


def test_a_budget_that_cannot_be_met_is_refused_before_training(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "space.budgets=[{macs: 1000}]")
    with pytest.raises(BudgetError, match=r"1,000 MACs is below the cheapest architecture.*[\d,]+"):
        run_stages(run)
    assert not (tmp_path / "runs" / "tiny" / "supernet").exists()
    # Mended, the same directory goes on: nothing was made with the wrong budget.
    run_stages(open_tiny(tmp_path), ("space",))


def test_a_number_of_classes_that_the_data_has_not(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "space.backbone_args.num_classes=7")
    with pytest.raises(ConfigError, match="found 7, but the data has 10 classes"):
        run_stages(run)


def test_budgets_and_baselines_are_distinct(tmp_path: Path) -> None:
    for override in (
        "space.budgets=[{uniform: 0.5}, {uniform: 0.5}]",
        "space.budgets=[{macs: 1000000}, {flops: 1e6}]",
        "retrain.baselines=[uniform, uniform]",
    ):
        with pytest.raises(ConfigError, match="distinct"):
            open_tiny(tmp_path, override)
    open_tiny(tmp_path, "space.budgets=[{uniform: 0.5}, {uniform: 0.5, min_share: 0.4}]")


def test_counts_say_whether_they_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, most in (("exact", 50_000), ("wide", 100)):
        monkeypatch.setattr("octnas.levels.CostLevels.__init__.__defaults__", (most, None))
        lines: list[str] = []
        run = open_tiny(tmp_path / name, lines=lines)
        run_stages(run, ("space",))
        (budget, *_) = read_json(run.directory.stage("space") / "budgets.json")["budgets"]
        found[name] = budget
        (line, *_) = [line for line in lines if "budget" in line]
        assert ("about" in line, "rounded up" in line) == (name == "wide", name == "wide")
        assert budget["exact"] == (name == "exact")
        assert budget["unit"] == "MACs"
    assert found["exact"]["architectures"] == int(found["exact"]["architectures"])
    assert found["wide"]["step"] > found["exact"]["step"]
    # Rounded up, costs leave fewer inside, and not many fewer.
    share = found["wide"]["architectures"] / found["exact"]["architectures"]
    assert 0.5 < share <= 1
