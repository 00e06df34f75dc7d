"""Trainings of single architectures."""

import json
import multiprocessing
import time
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import octnas.training.standalone as module
from octnas.data.images import Data, open_images
from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.errors import TrainingError
from octnas.io.files import remove_tree
from octnas.nn.rescale import fit_kernels
from octnas.nn.supernet import build
from octnas.nn.weights import save_weights
from octnas.results.validation_log import count_validations
from octnas.space.architecture import Architecture
from octnas.space.search_space import SearchSpace
from octnas.training.scoring import evaluate
from octnas.training.settings import Recipe, RetrainSettings
from octnas.training.standalone import (
    CHECKPOINTS_FOLDER,
    PREDICTIONS_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
    Original,
    Training,
    train_all,
    train_one,
    unfinished,
)
from tests.data.trees import make_tree, prepared
from tests.training.resuming import BrokenOffError, timeless, until
from tests.training.small import digits

# Digits need no image list.
DATA = Data(digits(320, 60, 60, 80), Path())
RECIPE = Recipe(epochs=2, batch_size=32)


def trainings(space: SearchSpace, folder: Path) -> list[Training]:
    return [
        Training(space.uniform(alpha), seed, folder / f"{alpha}-{seed}")
        for alpha in (0, 0.5)
        for seed in (0, 1)
    ]


def run(found: list[Training], settings: RetrainSettings) -> dict[str, dict[str, float]]:
    """Metrics of all trainings, by folder; what is unfinished is trained."""
    epochs: list[str] = []
    for training, result in train_all(
        unfinished(found),
        DATA,
        settings,
        "cpu",
        lambda training, _: epochs.append(training.folder.name),
    ):
        assert training.result == result
    assert len(epochs) % settings.recipe.epochs == 0
    return {one.folder.name: dict(one.result.metrics) for one in found if one.result}


def test_weights_on_disk_give_the_result_on_disk(digit_space: SearchSpace, tmp_path: Path) -> None:
    training = Training(digit_space.uniform(0.5), 0, tmp_path / "one")
    result = train_one(training, DATA, RetrainSettings(recipe=RECIPE), "cpu")
    assert training.result == result
    network = build(training.architecture, seed=99)
    network.load_state_dict(load_file(training.folder / WEIGHTS_FILE))
    measured = evaluate(
        network, open_images(DATA, (1, 16, 16)).batches("val", 128), torch.device("cpu")
    ).metrics
    assert measured["loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-5)
    assert measured["top1"] == result.metrics["val_top1"]
    assert [row["epoch"] for row in result.history] == [1, 2]


def test_predictions_are_kept_and_every_validation_is_logged(
    digit_space: SearchSpace, tmp_path: Path
) -> None:
    training = Training(
        digit_space.uniform(0.5), 0, tmp_path / "one", validation_log=tmp_path / "looks"
    )
    settings = RetrainSettings(recipe=RECIPE, test_sizes=(12, 24))
    metrics = train_one(training, DATA, settings, "cpu").metrics
    predictions = load_file(training.folder / PREDICTIONS_FILE)
    correct = predictions["predicted"] == predictions["target"]
    assert len(correct) == 80
    assert correct.double().mean() == metrics["val_top1"] <= metrics["val_top5"]
    assert predictions["in_top5"].double().mean() == metrics["val_top5"]
    assert predictions["loss"].mean().item() == pytest.approx(metrics["val_loss"], rel=1e-5)
    assert torch.equal(
        predictions["target"].long(),
        torch.cat([labels for _, labels in open_images(DATA, (1, 16, 16)).batches("val", 99)]),
    )
    looks = [json.loads(line) for line in (tmp_path / "looks").read_text().splitlines()]
    assert [look["size"] for look in looks] == [16, 12, 24]
    assert {look["why"] for look in looks} == {"retrain"}
    assert count_validations(tmp_path / "looks") == {"retrain": 3}
    network = build(training.architecture, seed=99)
    network.load_state_dict(load_file(training.folder / WEIGHTS_FILE))
    for size in (12, 24):
        batches = open_images(DATA, (1, size, size)).batches("val", 128)
        assert batches[0][0].shape[2:] == (size, size)
        measured = evaluate(network, batches, torch.device("cpu")).metrics
        assert measured["top1"] == metrics[f"val_top1@{size}"]


def test_other_image_sizes_with_a_cache(tmp_path: Path) -> None:
    """For the network that the cache was made for, and for one with smaller images."""
    cache = CacheSettings(enabled=True, folder=str(tmp_path / "cache"))
    tree = str(make_tree(tmp_path / "tree"))
    data = prepared(
        ImagesSettings(root=tree, search_val_per_class=3, read_per_class=2, workers=0, cache=cache),
        tmp_path / "data",
    )
    settings = RetrainSettings(recipe=replace(RECIPE, batch_size=4), test_sizes=(12, 24))
    for side in (16, 12):
        architecture = Architecture(
            "thumbnail_resnet",
            (3, side, side),
            {},
            backbone_args={"num_classes": 2, "channels": [4, 8, 8]},
        )
        training = Training(architecture, 0, tmp_path / f"{side}")
        metrics = train_one(training, data, settings, "cpu").metrics
        # Blue and red.
        assert metrics["val_top1"] == 1
        network = build(architecture, seed=99)
        network.load_state_dict(load_file(training.folder / WEIGHTS_FILE))
        for size in (12, 24):
            batches = open_images(data, (3, size, size)).batches("val", 16)
            assert next(iter(batches))[0].shape == (8, 3, size, size)
            measured = evaluate(network, batches, torch.device("cpu")).metrics
            assert measured["top1"] == metrics[f"val_top1@{size}"]


def test_finished_trainings_are_not_repeated(digit_space: SearchSpace, tmp_path: Path) -> None:
    settings = RetrainSettings(workers=1, recipe=RECIPE)
    found = trainings(digit_space, tmp_path)[:1]
    first = run(found, settings)
    before = (found[0].folder / RESULT_FILE).stat().st_mtime_ns
    assert run(found, settings) == first
    assert (found[0].folder / RESULT_FILE).stat().st_mtime_ns == before


def test_an_interrupted_training_resumes(
    digit_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RetrainSettings(recipe=replace(RECIPE, checkpoint_seconds=0))
    whole, broken = (
        Training(digit_space.uniform(0.5), 3, tmp_path / name) for name in ("whole", "broken")
    )
    expected = train_one(whole, DATA, settings, "cpu")
    for steps in (4, 10, 17):
        with monkeypatch.context() as patch:
            patch.setattr(module, "plain", until(steps))
            with pytest.raises(BrokenOffError):
                train_one(broken, DATA, settings, "cpu")
        assert broken.result is None
        assert len(list((broken.folder / CHECKPOINTS_FOLDER).iterdir())) == 2
    epochs: list[float] = []
    found = train_one(broken, DATA, settings, "cpu", lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2]
    assert timeless(found.history) == timeless(expected.history)
    assert timeless([found.metrics]) == timeless([expected.metrics])
    weights = [load_file(training.folder / WEIGHTS_FILE) for training in (whole, broken)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for training in (whole, broken):
        assert sorted(path.name for path in training.folder.iterdir()) == [
            PREDICTIONS_FILE,
            RESULT_FILE,
            WEIGHTS_FILE,
        ]


def test_leftover_checkpoints_of_a_finished_training_are_removed(
    digit_space: SearchSpace, tmp_path: Path
) -> None:
    settings = RetrainSettings(workers=1, recipe=RECIPE)
    found = trainings(digit_space, tmp_path)[:1]
    run(found, settings)
    found[0].checkpoints().write(20, {})
    run(found, settings)
    assert not (found[0].folder / CHECKPOINTS_FOLDER).exists()


@pytest.mark.slow
def test_side_by_side_gives_the_same_as_one_after_another(
    digit_space: SearchSpace, tmp_path: Path
) -> None:
    alone = run(trainings(digit_space, tmp_path / "a"), RetrainSettings(workers=1, recipe=RECIPE))
    beside = run(trainings(digit_space, tmp_path / "b"), RetrainSettings(workers=2, recipe=RECIPE))
    for results in (alone, beside):
        for metrics in results.values():
            metrics.pop("seconds")
    assert alone == beside
    assert len({metrics["val_loss"] for metrics in alone.values()}) == 4


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_and_keeps_what_is_finished(
    digit_space: SearchSpace, tmp_path: Path
) -> None:
    found = trainings(digit_space, tmp_path)[:2]
    found[1].folder.write_text("in the way")
    settings = RetrainSettings(workers=2, recipe=RECIPE)
    with pytest.raises(OSError, match="File exists"):
        run(found, settings)
    assert not multiprocessing.active_children()
    found[1].folder.unlink()
    assert len(run(found, settings)) == 2


@pytest.mark.slow
def test_a_killed_process_is_one_line(digit_space: SearchSpace, tmp_path: Path) -> None:
    found = trainings(digit_space, tmp_path)

    def kill(*_: object) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    settings = RetrainSettings(workers=2, recipe=RECIPE)
    with pytest.raises(TrainingError, match="a training process died"):
        list(train_all(found, DATA, settings, "cpu", kill))


@pytest.mark.slow
def test_trainings_end_with_a_killed_parent(digit_space: SearchSpace, tmp_path: Path) -> None:
    """After a SIGKILL nobody ends them; they notice it themselves."""
    context = multiprocessing.get_context("spawn")
    begun = context.Queue()
    parent = context.Process(target=_train_long, args=(digit_space, tmp_path, begun))
    parent.start()
    workers = begun.get(timeout=120)
    assert workers
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _train_long(space: SearchSpace, folder: Path, begun: "Queue[list[int]]") -> None:
    def on_epoch(*_: object) -> None:
        children = multiprocessing.active_children()
        begun.put([int(child.pid or 0) for child in children])

    settings = RetrainSettings(workers=2, recipe=Recipe(epochs=10_000, batch_size=32))
    list(train_all(trainings(space, folder), DATA, settings, "cpu", on_epoch))


SETTINGS = RetrainSettings(processes=2, recipe=Recipe(epochs=3, batch_size=32, warmup_epochs=0.5))


@pytest.mark.slow
def test_two_processes_train_one_network(digit_space: SearchSpace, tmp_path: Path) -> None:
    training = Training(digit_space.uniform(0.5), 0, tmp_path / "two")
    rows: list[dict[str, float]] = []
    result = train_one(
        training, DATA, SETTINGS, "cpu", lambda row: rows.append(dict(row)), watch="search_val"
    )
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["search_val_top1"] <= 1 for row in rows)
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < losses[0]
    assert sorted(path.name for path in training.folder.iterdir()) == [
        "judged.safetensors",
        "result.json",
        "weights.safetensors",
    ]
    network = build(training.architecture, seed=9)
    network.load_state_dict(load_file(training.folder / WEIGHTS_FILE))
    batches = open_images(DATA, (1, 16, 16)).batches("val", 80)
    measured = evaluate(network, batches, torch.device("cpu")).metrics
    assert measured["loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-5)
    # Close to one process with the whole batch; only batch norms differ.
    alone = Training(training.architecture, 0, tmp_path / "one")
    whole = train_one(alone, DATA, replace(SETTINGS, processes=1), "cpu")
    for one, other in zip(whole.history, result.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)
    again = train_one(Training(training.architecture, 0, tmp_path / "again"), DATA, SETTINGS, "cpu")
    assert again.metrics["val_loss"] == result.metrics["val_loss"]


@pytest.mark.slow
def test_a_process_that_fails_is_one_line(digit_space: SearchSpace, tmp_path: Path) -> None:
    training = Training(digit_space.uniform(0.5), 0, tmp_path / "lost")
    missing = Data(replace(DATA.settings, train_images=10), Path())
    with pytest.raises(TrainingError) as caught:
        train_one(training, missing, SETTINGS, "cpu")
    said = str(caught.value)
    assert said.startswith("a process of the training failed (")
    assert "batch_size" in said
    assert "\n" not in said
    assert training.result is None


def test_seeds_share_the_kernels_that_were_fitted(
    digit_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.safetensors"
    save_weights(build(digit_space.vanilla, seed=0), whole)
    original, fits = Original(digit_space.vanilla, whole), []

    def fit(*networks: object) -> None:
        fits.append(fit_kernels(*networks))  # type: ignore[arg-type,func-returns-value]

    monkeypatch.setattr(module, "fit_kernels", fit)
    settings = RetrainSettings(recipe=replace(RECIPE, epochs=1, warmup_epochs=0), fit_images=16)
    for alpha in (0.25, 0.5):
        for seed in (0, 1):
            folder = tmp_path / "all" / f"seed-{seed}"
            one = Training(digit_space.uniform(alpha), seed, folder, original=original)
            again = replace(one, folder=tmp_path / f"{alpha}-{seed}" / "alone")
            # The same as if each had fitted its own.
            (shared,), (alone,) = run([one], settings).values(), run([again], settings).values()
            assert min(shared.pop("seconds"), alone.pop("seconds")) > 0
            assert shared == alone
            remove_tree(folder)
    assert len(fits) == 2 + 4
