"""Runs that are broken off in the middle of a training, and go on."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

import octnas.pipeline.supernet as stage
import octnas.training.standalone as trainings
from octnas.errors import ConfigError, RunDirectoryError, SettingError
from octnas.io.files import read_json
from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.stages import run_stages
from octnas.pipeline.supernet import check_processes, read_seconds
from tests.pipeline.test_tracking_of_runs import runs_of
from tests.pipeline.tiny import EXPERIMENT, OFF, TINY, open_tiny, with_store
from tests.training.resuming import BrokenOffError, timeless, until

OFTEN = ("supernet.recipe.checkpoint_seconds=0", "retrain.recipe.checkpoint_seconds=0")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "runs" / "tiny" / "supernet" / "weights.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def break_off(run: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the supernet stage until so many steps are done."""

    def train_supernet(*args: Any, on_step: Any, **settings: Any) -> Any:
        def broken(number: int) -> None:
            if number == steps:
                raise BrokenOffError
            on_step(number)

        return original(*args, on_step=broken, **settings)

    original = stage.train_supernet
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_supernet", train_supernet)
        with pytest.raises(BrokenOffError):
            run_stages(run, ("supernet",))


class Bars:
    """Bars that keep what they were told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def say(self, line: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator["Bars"]:
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += [steps] if steps else []


def test_a_supernet_stage_goes_on(
    finished: Path, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight steps, four an epoch: broken off in the first epoch, and in the second."""
    with_store(tmp_path, migrated)
    folder = tmp_path / "runs" / "tiny" / "supernet"
    for steps in (3, 6):
        break_off(open_tiny(tmp_path, *OFTEN), steps, monkeypatch)
        assert read_json(folder / "stage.json")["finished"] is None
        assert len(list((folder / "checkpoints").iterdir())) == 2
    run, bars = open_tiny(tmp_path, *OFTEN), Bars()
    object.__setattr__(run, "progress", bars)
    run_stages(run, ("supernet",))
    assert bars.steps == [7, 1]
    assert_equal(weights(tmp_path), weights(finished))
    found, expected = (
        read_json(path / "runs" / "tiny" / "supernet" / "history.json")["epochs"]
        for path in (tmp_path, finished)
    )
    assert timeless(found) == timeless(expected)
    assert read_seconds(run) == found[-1]["seconds"] > found[0]["seconds"] > 0
    assert not (folder / "checkpoints").exists()
    # One run in MLflow, with every epoch once.
    recorded = runs_of(tmp_path)
    assert recorded["supernet"].info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    for name in ("train_loss", "lr"):
        told = client.get_metric_history(recorded["supernet"].info.run_id, name)
        assert [entry.step for entry in told] == [1, 2]


@pytest.mark.slow
def test_a_stage_that_cannot_begin_can_be_mended(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set: supernet.macs: found \(0.0, 0.01\), allowed: "):
        run_stages(open_tiny(tmp_path, "supernet.macs=[0, 0.01]"), ("supernet",))
    (tmp_path / "w.pth").write_text("nonsense")
    other = (f"supernet.weights={tmp_path / 'w.pth'}", "space.stride_mode=timm")
    with pytest.raises(ConfigError, match=r"^--set: supernet.weights: found '/.*/w.pth'"):
        run_stages(open_tiny(tmp_path / "other", *other), ("supernet",))
    assert not (tmp_path / "runs" / "tiny" / "supernet" / "stage.json").exists()
    run_stages(open_tiny(tmp_path), ("supernet",))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(2, torch.device("cuda"))
    check_processes(3, torch.device("cpu"))
    with pytest.raises(SettingError, match="processes: found 3, allowed: at most 2, the GPUs"):
        check_processes(3, torch.device("cuda"))


def test_it_is_the_weights_that_count_and_not_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(name: str) -> dict[str, Any]:
        settings = ("space.stride_mode=timm", f"supernet.weights={name}")
        return open_tiny(tmp_path, *settings).fingerprint("supernet")

    for name, content in (("a.pth", "one"), ("b.pth", "one"), ("c.pth", "other")):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    first = fingerprint("a.pth")
    monkeypatch.chdir(tmp_path.parent)
    assert fingerprint(str(tmp_path / "b.pth")) == first
    assert fingerprint(str(tmp_path / "c.pth")) != first
    with pytest.raises(ConfigError, match=r"^supernet.weights: /.*/a.pth: cannot be read"):
        fingerprint("a.pth")
    assert fingerprint("timm")["supernet.weights"] == "timm"


def test_other_settings_do_not_go_on_from_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(open_tiny(tmp_path, OFF, *OFTEN), 3, monkeypatch)
    with pytest.raises(RunDirectoryError, match=r"supernet\.recipe\.ema: was 0.0, now 0.5"):
        open_tiny(tmp_path, "supernet.recipe.ema=0.5")
    open_tiny(tmp_path, "supernet.recipe.checkpoint_seconds=7")
    open_tiny(tmp_path, "supernet.recipe.ema=0.5", fresh="supernet")
    assert not (tmp_path / "runs" / "tiny" / "supernet").exists()


@pytest.mark.slow
def test_retraining_goes_on_with_a_network_in_two_roles(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained once, and its epochs are told to both of its runs in MLflow, once."""
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy"
    settings = ("retrain.baselines=[uniform, vanilla]", "tracking.enabled=true", *OFTEN)
    expected = read_results(open_tiny(finished))
    for life, steps in enumerate((3, 6)):
        run = open_tiny(path, *settings, fresh=None if life else "retrain")
        with monkeypatch.context() as patch:
            patch.setattr(trainings, "plain", until(steps))
            with pytest.raises(BrokenOffError):
                run_stages(run, ("retrain",))
    run = open_tiny(path, *settings)
    run_stages(run, ("retrain",))
    by_id = {result.network.architecture.id: result for result in expected}
    for result in read_results(run):
        one = by_id[result.network.architecture.id]
        assert result.values("val_loss") == one.values("val_loss")
        for found, known in zip(result.runs, one.runs, strict=True):
            assert timeless(found.history) == timeless(known.history)
    assert not list((path / "runs" / "tiny" / "retrain").rglob("checkpoints"))
    client = MlflowClient(f"sqlite:///{path}/runs/mlflow.db")
    ids = read_json(path / "runs" / "tiny" / "tracking.json")["runs"]
    for result in read_results(run):
        run_id = ids[f"retrain/{result.network.slug}"]
        told = client.get_metric_history(run_id, "seed_0/train_loss")
        assert [entry.step for entry in told] == [1, 2]


LONG = ("supernet.recipe.epochs=40", "retrain.recipe.epochs=20", "retrain.seeds=[0]", *OFTEN)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_gives_what_it_would_have_given(
    tmp_path: Path,
) -> None:
    """SIGKILL in the supernet, in the search, and in the retraining, at random moments there."""
    chance = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    run_stages(open_tiny(whole, *LONG))
    directory = killed / "runs" / "tiny"
    for begun in (
        *("supernet/checkpoints/*", "supernet/checkpoints/*"),
        *("search/study.journal", "retrain/*/*/checkpoints/*", "retrain/*/*/checkpoints/*"),
    ):
        before = set(directory.glob(begun))
        process = start(killed)
        deadline = time.monotonic() + 240
        while not set(directory.glob(begun)) - before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if begun.startswith("supernet"):
            time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(killed)
    assert last.wait(timeout=600) == 0
    runs = [open_tiny(path, *LONG) for path in (whole, killed)]
    assert_equal(weights(killed), weights(whole))
    assert read_candidates(runs[0]) == read_candidates(runs[1])
    assert read_chosen(runs[0]) == read_chosen(runs[1])
    results = [read_results(run) for run in runs]
    for one, other in zip(*results, strict=True):
        assert one.network == other.network
        assert one.values("val_loss") == other.values("val_loss")
        assert timeless(one.runs[0].history) == timeless(other.runs[0].history)
    assert not list(directory.rglob("*.checkpoint"))


PROGRAM = "from octnas.cli.main import main; main()"


def start(path: Path) -> subprocess.Popen[bytes]:
    settings = (*TINY, *LONG, "tracking.enabled=false")
    changes = [part for setting in settings for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", str(EXPERIMENT), *changes],
        cwd=path,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_checkpoints_without_a_marker_are_not_believed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal by --fresh that was broken off leaves them, and the marker goes first."""
    break_off(open_tiny(tmp_path, *OFTEN, "seed=3"), 3, monkeypatch)
    (tmp_path / "runs" / "tiny" / "supernet" / "stage.json").unlink()
    run_stages(open_tiny(tmp_path), ("supernet",))
    assert_equal(weights(tmp_path), weights(finished))


@pytest.mark.slow
def test_a_supernet_whose_checkpoints_are_gone_is_not_trained_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed between their removal and the marker."""

    def killed(*_: object) -> None:
        raise BrokenOffError

    run = open_tiny(tmp_path, *OFTEN)
    run_stages(run, ("data", "space"))
    with monkeypatch.context() as patch:
        patch.setattr(run.directory.__class__, "finish", killed)
        with pytest.raises(BrokenOffError):
            run_stages(run, ("supernet",))
    assert not (tmp_path / "runs" / "tiny" / "supernet" / "checkpoints").exists()
    monkeypatch.setattr(stage, "train_supernet", killed)
    run_stages(open_tiny(tmp_path, *OFTEN), ("supernet",))
    assert_equal(weights(tmp_path), weights(finished))
