"""What goes wrong around a run: disks, devices, memory, images. Each is a line, and is mended."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import octnas.io.files as files
import octnas.training.standalone as trainings
from octnas.errors import DataError, DeviceError, SearchError, TrainingError
from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.pipeline.supernet import scorer
from octnas.runtime.lock import held
from octnas.runtime.progress import Quiet
from octnas.training.loop import Backward, Step, plain
from octnas.training.scoring import Scorer
from tests.cli.conftest import Octnas, octnas  # noqa: F401
from tests.data.trees import make_tree
from tests.pipeline.tiny import BRIEF, EXPERIMENT, OFF, TINY, open_tiny, open_unlocked

LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported elsewhere"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."
FEW = ("retrain.baselines=[]", "retrain.seeds=[0]")


def searching(finished: Path, path: Path, *overrides: str) -> Run:
    """A run whose supernet is trained, and which is about to search."""
    shutil.copytree(finished, path, dirs_exist_ok=True)
    return open_tiny(path, OFF, *overrides, fresh="search")


def failing(error: Exception, calls: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluations of some numbers fail."""
    original, made = Scorer._scored, [0]

    def scored(self: Scorer, *arguments: Any) -> dict[str, float]:
        made[0] += 1
        if made[0] - 1 in calls:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(Scorer, "_scored", scored)


def test_a_candidate_without_memory_is_a_failed_trial_with_its_reason(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    run = searching(finished, tmp_path)
    object.__setattr__(run, "progress", Quiet(lines.append))
    failing(torch.OutOfMemoryError(FULL), range(9, 11), monkeypatch)
    run_stages(run, ("search",))
    assert len(read_candidates(run)) == len(read_candidates(open_tiny(finished))) - 1
    said = [line for line in lines if "trial failed" in line]
    assert said == [f"  1 trial failed; the first: OutOfMemoryError: {FULL}"]


def test_a_gpu_that_falls_out_ends_the_search_and_spoils_no_trial(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every later call would fail as well, and a failed trial stays one."""
    run = searching(finished, tmp_path)
    with monkeypatch.context() as patch:
        failing(torch.AcceleratorError(LOST), range(9, 1000), patch)
        with pytest.raises(DeviceError) as caught:
            run_stages(run, ("search",))
    assert str(caught.value).startswith("the device has failed (CUDA error: unspecified launch")
    assert "\n" not in str(caught.value)
    again = open_tiny(tmp_path, OFF)
    run_stages(again, ("search",))
    assert read_candidates(again) == read_candidates(open_tiny(finished))
    assert read_chosen(again).keys() == read_chosen(open_tiny(finished)).keys()


def test_a_candidate_whose_loss_is_lost(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = searching(finished, tmp_path, "search.retries=0")
    failing(TrainingError("the loss is nan"), range(3, 4), monkeypatch)
    run_stages(run, ("search",))
    assert len(read_candidates(run)) == len(read_candidates(open_tiny(finished))) - 1
    failing(TrainingError("the loss is nan"), range(1000), monkeypatch)
    with pytest.raises(SearchError, match="candidates failed: TrainingError: the loss is nan"):
        run_stages(open_tiny(tmp_path, OFF, "search.retries=0", fresh="search"), ("search",))


def spoiled(number: int, what: Callable[[], object], backward: Backward = plain) -> Backward:
    """Steps of which one goes wrong."""

    def step(step: Step) -> torch.Tensor:
        loss = backward(step)
        if step.number == number:
            what()
            return loss * float("nan")
        return loss

    return step


@pytest.mark.parametrize("checkpoint_seconds", [0, pytest.param(60, marks=pytest.mark.slow)])
def test_a_retraining_whose_loss_is_lost_goes_on_from_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_seconds: int
) -> None:
    """No checkpoint holds the NaN, so that one that a device has made is mended by going on."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    settings = (OFF, *FEW, f"retrain.recipe.checkpoint_seconds={checkpoint_seconds}")
    run = open_tiny(tmp_path, *settings, fresh="retrain")
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "plain", spoiled(2, lambda: None))
        with pytest.raises(TrainingError, match=r"^the loss is nan in epoch 1; lower recipe.lr$"):
            run_stages(run, ("retrain",))
    again = open_tiny(tmp_path, *settings)
    run_stages(again, ("retrain",))
    assert again.directory.finished("retrain")


def test_a_gpu_that_falls_out_of_a_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = open_tiny(tmp_path, OFF, *FEW, fresh="retrain")

    def lost() -> None:
        raise torch.AcceleratorError(LOST)

    monkeypatch.setattr(trainings, "plain", spoiled(2, lost))
    with pytest.raises(DeviceError, match=r"^the device has failed \(CUDA error") as caught:
        run_stages(run, ("retrain",))
    assert "\n" not in str(caught.value)


def test_images_that_vanish_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "tree", train=24)

    def opened() -> Run:
        data = (
            f"data={{source: folder, root: {tree}, search_val_per_class: 3, read_per_class: 2, "
            "workers: 0, cache: {enabled: false}}"
        )
        batch = ("supernet.recipe.batch_size=8", "retrain.recipe.batch_size=8")
        small = ("space.input_size=[3, 16, 16]", *batch, data, OFF)
        kept = [one for one in TINY if not one.startswith("data.")]
        return open_unlocked(
            EXPERIMENT,
            overrides=(*kept, *small, "supernet.recipe.checkpoint_seconds=0", BRIEF),
            run_dir=tmp_path / "run",
            progress=Quiet(),
        )

    run = opened()
    bar = run.progress.bar

    @contextlib.contextmanager
    def vanishing(title: str, total: int) -> Iterator[Any]:
        with bar(title, total) as shown:
            advance, steps = shown.advance, [0]

            def gone(count: int = 1, note: str = "") -> None:
                steps[0] += count
                if steps[0] == 3 and title == "supernet":
                    tree.rename(tmp_path / "away")
                advance(count, note)

            monkeypatch.setattr(shown, "advance", gone)
            yield shown

    monkeypatch.setattr(run.progress, "bar", vanishing)
    with pytest.raises(DataError, match=r"^train/\w+/\d+.jpeg: cannot be read any more"):
        run_stages(run, ("supernet",))
    assert list((tmp_path / "run" / "supernet" / "checkpoints").iterdir())
    (tmp_path / "away").rename(tree)
    again = opened()
    run_stages(again, ("supernet",))
    assert again.directory.finished("supernet")


@pytest.mark.parametrize("stage", ["supernet", "search/study.journal"])
def test_a_disk_that_gets_full(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    octnas: Octnas,  # noqa: F811
    stage: str,
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    first, sync = stage.split("/")[0], os.fsync
    settings = [part for one in (*TINY, OFF) for part in ("--set", one)]
    where = ["--run-dir", str(tmp_path / "runs" / "tiny")]

    def full(handle: int) -> None:
        if f"/{stage}" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    open_tiny(tmp_path, OFF, fresh=first)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        found = octnas(first, str(EXPERIMENT), *where, *settings)
    assert found.code == 2
    assert found.err.startswith(f"octnas: {tmp_path}/runs/tiny/{first}/")
    assert found.err.endswith(
        "No space left on device; free some space, and the same command resumes\n"
    )
    assert found.err.count("\n") == 1
    assert octnas(first, str(EXPERIMENT), *where, *settings).code == 0
    again, expected = open_tiny(tmp_path, OFF), open_tiny(finished)
    if first == "search":
        assert read_candidates(again) == read_candidates(expected)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; only where that is allowed."""
    place = tmp_path / "mounted"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_disk_and_a_larger_one(mounted: Path, octnas: Octnas) -> None:  # noqa: F811
    settings = [part for one in (*TINY, OFF, BRIEF) for part in ("--set", one)]
    command = ("search", str(EXPERIMENT), "--run-dir", str(mounted / "run"), *settings)
    supernet = ("supernet", *command[1:])
    (mounted / "ballast").write_bytes(bytes(2**20 - 2**15))
    found = octnas(*supernet)
    assert found.code == 2
    assert "No space left on device; free some space, and the same command resumes\n" in found.err
    assert found.err.count("\n") == 1
    (mounted / "ballast").unlink()
    assert octnas(*supernet).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    found = octnas(*command)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "Read-only file system" in found.err
    subprocess.run(["mount", "-o", "remount,rw", str(mounted)], check=True)
    assert octnas(*command).code == 0


@pytest.mark.slow
def test_the_second_command_is_refused(
    finished: Path,
    tmp_path: Path,
    octnas: Octnas,  # noqa: F811
) -> None:
    """Also one that would remove results; one that looks on is not."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs" / "tiny"
    with held(run):
        for command in (["run"], ["search", "--fresh", "search"], ["report"], ["export"]):
            found = octnas(command[0], str(run), *command[1:])
            assert found.code == 2
            assert found.err.startswith(f"octnas: {run}: process {os.getpid()} on ")
            assert found.err.count("\n") == 1
        assert octnas("report", str(run), "--watch", "--seconds", "1").code == 0
        assert octnas("sync", str(run)).code == 0
    assert open_tiny(tmp_path).directory.finished("search")


def test_scorers_say_what_is_wrong_with_the_device(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_tiny(finished)
    failing(torch.AcceleratorError(LOST), range(1), monkeypatch)
    score = scorer(run, "search_val")()
    alphas = run.space.uniform(0.5).alphas
    with pytest.raises(DeviceError):
        score(alphas)
    assert score(alphas)["loss"] > 0
