"""One network that two processes train: the same steps as one process that adds up both halves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octnas.data.images import Data, open_images
from octnas.errors import TrainingError
from octnas.nn.supernet import build
from octnas.space import SearchSpace
from octnas.training.evaluate import evaluate
from octnas.training.fit import WEIGHTS_FILE, Training
from octnas.training.one import train_one
from octnas.training.retrain_settings import RetrainSettings
from octnas.training.settings import Recipe
from tests.training.small import digits

DATA = Data(digits(320, 60, 60, 80), Path())
SETTINGS = RetrainSettings(ranks=2, recipe=Recipe(epochs=3, batch_size=32, warmup_epochs=0.5))


@pytest.mark.slow
def test_two_processes_train_one_network(digit_space: SearchSpace, tmp_path: Path) -> None:
    training = Training(digit_space.uniform(0.5), 0, tmp_path / "two")
    rows: list[dict[str, float]] = []
    result = train_one(
        training, DATA, SETTINGS, "cpu", lambda _, row: rows.append(dict(row)), watch="rank"
    )
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["rank_top1"] <= 1 for row in rows)
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
    measured = evaluate(network, batches, torch.device("cpu"))
    assert measured["loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-5)
    # Each process sees half of every batch: near one process that sees all, but for batch norms.
    alone = Training(training.architecture, 0, tmp_path / "one")
    whole = train_one(alone, DATA, replace(SETTINGS, ranks=1), "cpu")
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
