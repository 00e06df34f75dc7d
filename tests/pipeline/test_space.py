"""The data stage within a run: lists, refusals, and what the report and MLflow are told."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from octnas.data.image_list import read_images
from octnas.errors import BudgetError, ConfigError, DataError
from octnas.io.files import read_json
from octnas.pipeline.records import begin_tracking
from octnas.pipeline.report import facts
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.runtime.progress import Quiet
from tests.data.trees import make_tree
from tests.homes import without_home
from tests.pipeline.tiny import EXPERIMENT, open_tiny, open_unlocked


def test_a_budget_that_cannot_be_met_is_refused_before_training(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "space.budgets=[{macs: 1000}]")
    with pytest.raises(BudgetError, match=r"1,000 MACs is below the smallest architecture.*[\d,]+"):
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
        monkeypatch.setattr(
            "octnas.space.cost_table.CostLevels.__init__.__defaults__", (most, None, ())
        )
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


Open = Callable[..., Run]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


@pytest.fixture
def open_tree(tree: Path, tmp_path: Path) -> Open:
    """Opens an experiment on the tree."""

    def opened(*overrides: str, lines: list[str] | None = None) -> Run:
        common = (
            "space.backbone_args.channels=[4, 8, 8]",
            "space.input_size=[3, 16, 16]",
            f"data={{source: folder, root: {tree}, search_val_per_class: 3, read_per_class: 2, "
            "workers: 0}",
        )
        return open_unlocked(
            EXPERIMENT,
            overrides=(*common, *overrides),
            run_dir=tmp_path / "run",
            progress=Quiet([].append if lines is None else lines.append),
            stages=("data",),
        )

    return opened


def test_the_space_has_the_classes_of_the_subset(open_tree: Open) -> None:
    run = open_tree("data.subset.classes=[red]", "tracking.enabled=false")
    run_stages(run, ("data",))
    assert read_images(run.data.folder).classes == ("red",)
    assert run.space.backbone_args["num_classes"] == 1


def test_a_broken_image_stops_the_run_or_is_counted(open_tree: Open, tree: Path) -> None:
    (tree / "train/red/0.jpeg").write_bytes(b"")
    run = open_tree()
    with pytest.raises(DataError, match=r"cannot be used: 1, the first: train/red/0.jpeg"):
        run_stages(run, ("data",))
    assert run.directory.finished("data") is None
    lines: list[str] = []
    run = open_tree("data.on_error=skip", lines=lines)
    run_stages(run, ("data",))
    assert "data: 2 classes, images: 13 train, 6 search_val, 4 read, 8 val, 1 skipped" in lines
    assert facts(run)["Skipped images and folders"] == "1"
    assert facts(run)["Images"] == "13 train, 6 search_val, 4 read, 8 val, 1 skipped"


def test_mlflow_counts_what_was_skipped(
    open_tree: Open, tree: Path, tmp_path: Path, migrated: Path
) -> None:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    (tree / "train/red/0.jpeg").write_bytes(b"")
    (tree / "val/blue/1.jpeg").write_bytes(b"no image")
    (tree / "train/hollow").mkdir()
    run = open_tree("name=tiny", "data.on_error=skip")
    run_stages(run, ("data",))
    begin_tracking(run)
    run.tracker.close()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    params = found.data.params
    assert params["data.skipped"] == "3"
    assert params["data.on_error"] == "skip"
    assert params["data.digest"] == read_images(run.data.folder).digest


def test_a_finished_list_is_kept_though_the_disk_changes(open_tree: Open, tree: Path) -> None:
    """So a resumed run, and every node, uses the same images."""
    run = open_tree()
    run_stages(run, ("data",))
    before = (run.data.folder / "images.tsv").read_bytes()
    (tree / "train/red/more.jpeg").write_bytes((tree / "train/red/0.jpeg").read_bytes())
    again = open_tree()
    run_stages(again, ("data",))
    assert (again.data.folder / "images.tsv").read_bytes() == before


def test_a_setting_that_does_not_fit_is_named_with_its_line(open_tree: Open) -> None:
    run = open_tree("data.cache={enabled: true, resolution: 99}")
    with pytest.raises(ConfigError, match=r"data\.cache\.resolution: found 99, allowed: 16 to 32"):
        run_stages(run, ("data",))


def test_paths_are_absolute_for_workers(
    open_tree: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = open_tree("data.cache.enabled=true").config.data.cache  # type: ignore[union-attr]
    assert cache.folder == str(tmp_path / "home" / ".cache" / "octnas")


def test_a_folder_in_a_home_that_is_not_there_is_one_line(
    open_tree: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tree("data.cache={enabled: true, folder: ~nouser/x}")
    assert str(caught.value) == (
        "data.cache.folder: found '~nouser/x', that user has no home directory; give an absolute "
        "path"
    )
    without_home(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        open_tree("data.cache.enabled=true")
    assert str(caught.value) == (
        "data.cache.folder: found '~/.cache/octnas', this user has no home directory; give an "
        "absolute path"
    )
    for key in ("data.root", "ranking.truth_from", "latency.table", "supernet.weights"):
        with pytest.raises(ConfigError, match=f"^{key}: found '~/x', this user has no home"):
            open_tree("data.cache.enabled=false", f"{key}=~/x")


def test_a_user_without_a_home_needs_none_without_a_cache(
    open_tree: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_home(monkeypatch)
    open_tree("data.cache.enabled=false")
    open_tree(f"data.cache={{enabled: true, folder: {tmp_path / 'cache'}}}")
