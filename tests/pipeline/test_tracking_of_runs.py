"""What a run records in MLflow."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import plotly.io
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from octnas.data.image_list import read_summary
from octnas.pipeline.records import read_candidates, read_results
from octnas.pipeline.stages import run_stages
from octnas.tracking.tracker import Tracker
from tests.pipeline.tiny import BRIEF, OFF, open_tiny, with_store


def runs_of(path: Path) -> dict[str, MlflowRun]:
    client = MlflowClient(f"sqlite:///{path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def artifacts(path: Path, run: MlflowRun, folder: str = "") -> set[str]:
    client = MlflowClient(f"sqlite:///{path}/runs/mlflow.db")
    return {entry.path for entry in client.list_artifacts(run.info.run_id, folder or None)}


@pytest.fixture(scope="module")
def runs(finished: Path) -> dict[str, MlflowRun]:
    return runs_of(finished)


def test_one_parent_and_a_child_for_each_part(finished: Path, runs: dict[str, MlflowRun]) -> None:
    networks = {result.network.name for result in read_results(open_tiny(finished))}
    assert set(runs) == {"tiny", "supernet", "search"} | networks
    parent = runs["tiny"].info.run_id
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        expected = None if name == "tiny" else parent
        assert run.data.tags.get("mlflow.parentRunId") == expected


def test_parameters(runs: dict[str, MlflowRun]) -> None:
    assert runs["tiny"].data.params["space.backbone"] == "thumbnail_resnet"
    assert runs["tiny"].data.params["seed"] == "0"
    assert runs["supernet"].data.params["supernet.recipe.epochs"] == "2"
    assert runs["search"].data.params["search.trials"] == "20"
    assert int(runs["vanilla"].data.params["macs"]) > 0


def test_metrics_over_time(finished: Path, runs: dict[str, MlflowRun]) -> None:
    client = MlflowClient(f"sqlite:///{finished}/runs/mlflow.db")
    losses = client.get_metric_history(runs["supernet"].info.run_id, "train_loss")
    assert [entry.step for entry in losses] == [1, 2]
    macs = client.get_metric_history(runs["search"].info.run_id, "macs")
    candidates = read_candidates(open_tiny(finished))
    assert len(macs) == 20
    assert {int(entry.value) for entry in macs} == {candidate.macs for candidate in candidates}
    for seed in (0, 1):
        curve = client.get_metric_history(runs["vanilla"].info.run_id, f"seed_{seed}/train_loss")
        assert [entry.step for entry in curve] == [1, 2]


def test_results_of_retrained_networks(finished: Path, runs: dict[str, MlflowRun]) -> None:
    for result in read_results(open_tiny(finished)):
        metrics = runs[result.network.name].data.metrics
        assert metrics["val_top1"] == pytest.approx(result.mean("val_top1"))
        assert metrics["val_top1_std"] == pytest.approx(result.std("val_top1"))


def test_artifacts(finished: Path, runs: dict[str, MlflowRun]) -> None:
    assert {"config.yaml", "run.json", "space.json", "report"} <= artifacts(finished, runs["tiny"])
    assert "report/index.html" in artifacts(finished, runs["tiny"], "report")
    figures = artifacts(finished, runs["tiny"], "report/figures")
    names = ("front", "retrained", "alpha", "hypervolume", "training")
    assert figures == {f"report/figures/{name}.json" for name in names}
    files = {"front.csv", "front.json", "networks.csv", "report.md"}
    assert {f"report/{name}" for name in files} <= artifacts(finished, runs["tiny"], "report")
    front = plotly.io.read_json(finished / "runs/tiny/report/figures/front.json")
    assert len(front.data) > 1
    assert {"candidates.json", "chosen.json"} <= artifacts(finished, runs["search"])
    assert "weights.safetensors" in artifacts(finished, runs["supernet"])
    (folder,) = artifacts(finished, runs["vanilla"], "model")
    assert f"{folder}/model.safetensors" in artifacts(finished, runs["vanilla"], folder)


def test_trials_are_one_table(
    finished: Path, runs: dict[str, MlflowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished}/runs/mlflow.db")
    run = runs["search"]
    client = MlflowClient()
    table = client.load_table(run.info.experiment_id, "trials.json", [run.info.run_id])
    candidates = read_candidates(open_tiny(finished))
    assert list(table["id"]) == [candidate.id for candidate in candidates]
    assert list(table["macs"]) == [candidate.macs for candidate in candidates]
    assert list(table["loss"]) == pytest.approx([candidate.loss for candidate in candidates])
    for site in candidates[0].alphas:
        found = list(table[f"alpha/{site}"])
        assert found == [candidate.alphas[site] for candidate in candidates]


def test_the_hypervolume_never_decreases(finished: Path, runs: dict[str, MlflowRun]) -> None:
    client = MlflowClient(f"sqlite:///{finished}/runs/mlflow.db")
    points = client.get_metric_history(runs["search"].info.run_id, "hypervolume")
    assert [point.step for point in points] == list(range(20))
    values = [point.value for point in points]
    assert values == sorted(values)
    assert values[-1] > 0


def test_versions_commit_and_data(finished: Path, runs: dict[str, MlflowRun]) -> None:
    parent = runs["tiny"]
    for package in ("octnas", "torch", "timm", "optuna", "mlflow"):
        assert parent.data.params[f"version.{package}"] == version(package)
    digest = read_summary(finished / "runs" / "tiny" / "data").digest
    assert parent.data.params["data.digest"] == digest
    assert {"octnas.record", "octnas.outbox"} <= set(parent.data.tags)


def test_a_second_run_adds_nothing(finished: Path, runs: dict[str, MlflowRun]) -> None:
    run_stages(open_tiny(finished))
    again = runs_of(finished)
    assert {name: run.info.run_id for name, run in again.items()} == {
        name: run.info.run_id for name, run in runs.items()
    }


def test_tracking_can_be_off(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, OFF, BRIEF)
    run_stages(run, ("supernet",))
    assert run.tracker.view_command() == ""
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["tiny"]


def test_interrupted_runs_are_failed_and_resumed_later(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import octnas.pipeline.supernet as module

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with_store(tmp_path, migrated)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_supernet", fail)
        broken = open_tiny(tmp_path, BRIEF)
        with pytest.raises(KeyboardInterrupt):
            run_stages(broken, ("supernet",))
    assert {name: run.info.status for name, run in runs_of(tmp_path).items()} == {
        "tiny": "FAILED",
        "supernet": "FAILED",
    }
    run_stages(open_tiny(tmp_path, BRIEF), ("supernet",))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    live = {run.info.run_name: run for run in found}
    # Nothing was recorded before the interruption.
    assert len(found) == 2
    assert live["tiny"].info.status == "FINISHED"
    assert live["supernet"].info.status == "FINISHED"


def test_the_hypervolume_continues_in_a_resumed_search(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    volumes: dict[int, float] = {}

    def metrics(_: Tracker, key: str, values: Mapping[str, float], step: int) -> None:
        if key == "search":
            volumes[step] = values["hypervolume"]
        if len(volumes) == 9:
            raise KeyboardInterrupt

    given = ("search.sampler=random", OFF)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "metrics", metrics)
        with pytest.raises(KeyboardInterrupt):
            run_stages(open_tiny(tmp_path, *given, fresh="search"), ("search",))
        volumes[-1] = 0.0
        run_stages(open_tiny(tmp_path, *given), ("search",))
    ordered = [volumes[step] for step in sorted(volumes)]
    assert len(ordered) > 15
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    "place",
    [
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("begin_tracking", "write_json")),
        "track_network",
        pytest.param("_train", marks=pytest.mark.slow),
    ],
)
def test_retraining_again_has_new_runs_wherever_it_was_killed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs", symlinks=True)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    few = ("retrain.baselines=[uniform]", "retrain.seeds=[0]")

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"octnas.pipeline.retrain.{place}", killed)
        with pytest.raises(Killed):
            run_stages(open_tiny(tmp_path, *few, fresh="retrain"), ("retrain",))
    run_stages(open_tiny(tmp_path, *few), ("retrain",))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id]))
    before = {one.info.run_id for one in runs_of(finished).values()}
    for result in read_results(open_tiny(tmp_path, *few)):
        own = [one for one in found if one.info.run_name == result.network.name]
        live = [one for one in own if "octnas.superseded" not in one.data.tags]
        assert len(live) == 1
        assert live[0].info.status == "FINISHED"
        assert len(own) == 2
        # The records of the first training are unchanged.
        assert live[0].info.run_id not in before
        assert before & {one.info.run_id for one in own}
        history = client.get_metric_history(live[0].info.run_id, "val_top1")
        assert len(history) == 1
