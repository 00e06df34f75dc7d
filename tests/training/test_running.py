"""Trainings that are broken off and go on give what they would have given, bit for bit."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from octnas.data.batches import TrainingBatches
from octnas.data.digits import DigitImages
from octnas.data.images import open_images
from octnas.data.settings import AugmentSettings, CacheSettings, ImagesSettings
from octnas.errors import TrainingError
from octnas.training.checkpoint import Checkpoints
from octnas.training.loop import train
from octnas.training.running import own_randomness
from octnas.training.settings import Recipe
from octnas.training.step import Step, plain
from tests.data.trees import make_tree, prepared
from tests.training.resuming import CPU, BrokenOffError, assert_equal_weights, timeless, until

SGD = Recipe(epochs=3, batch_size=64, ema=0.9, clip_grad=1.0)
ADAMW = replace(SGD, optimizer="adamw", lr=1e-3, scheduler="step")
BARE = Recipe(epochs=2, batch_size=64, warmup_epochs=0, optimizer="momentum", momentum=0)
LAST = replace(SGD, channels_last=True, amp="bf16", label_smoothing=0.1)


def network(seed: int = 0, channels: int = 1, width: int = 6) -> nn.Module:
    """With batch norm, dropout and stochastic depth."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(channels, width, 3, stride=4, padding=1, bias=False)
        layers = (conv, nn.BatchNorm2d(width), DropPath(0.2), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(16 * width, 10))


def compare(
    batches: TrainingBatches, recipe: Recipe, folder: Path, breaks: list[int], **settings: Any
) -> None:
    """Train without and with breaks, and with a checkpoint after every step."""
    shape = next(batches.epoch(0))[0].shape
    whole = network(channels=shape[1])
    expected = train(whole, batches, recipe, device=CPU, seed=5, **settings)
    checkpoints = Checkpoints(folder / "checkpoints", 0)
    for index, steps in enumerate(breaks):
        # With what it is initialised does not matter once there is a checkpoint.
        broken = network(seed=index, channels=shape[1])
        with pytest.raises(BrokenOffError):
            train(
                broken,
                batches,
                recipe,
                device=CPU,
                seed=5,
                checkpoints=checkpoints,
                backward=until(steps),
            )
    resumed = network(seed=99, channels=shape[1])
    found = train(resumed, batches, recipe, device=CPU, seed=5, checkpoints=checkpoints)
    assert_equal_weights(resumed, whole)
    assert timeless(found) == timeless(expected)


# Of 320 images, 5 steps an epoch: in the middle, at the end of an epoch, before the last step.
@pytest.mark.parametrize("breaks", [[1], [4], [5], [7], [10], [14], [1, 5, 6, 12]])
@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_digits(few_digits: DigitImages, tmp_path: Path, recipe: Recipe, breaks: list[int]) -> None:
    compare(few_digits.train_batches(64, 3), recipe, tmp_path, breaks)


@pytest.mark.parametrize("recipe", [BARE, LAST], ids=["bare", "bf16"])
def test_other_recipes(few_digits: DigitImages, tmp_path: Path, recipe: Recipe) -> None:
    compare(few_digits.train_batches(64, 3), recipe, tmp_path, [3, 5, 8])


@pytest.mark.parametrize(("cached", "workers"), [(False, 0), (False, 2), (True, 0)])
def test_files_and_caches(tmp_path: Path, cached: bool, workers: int) -> None:
    """With augmentation and mixing, whose draws come again as they would have been."""
    settings = ImagesSettings(
        root=str(make_tree(tmp_path / "tree")),
        rank_per_class=2,
        read_per_class=2,
        augment=AugmentSettings(color_jitter=0.3, rand_augment=1, mixup=0.3, cutmix=1.0),
        cache=CacheSettings(enabled=cached, folder=str(tmp_path / "cache")),
        workers=workers,
    )
    images = open_images(prepared(settings, tmp_path / "data"), (3, 16, 16))
    batches = images.train_batches(4, 1)
    assert len(batches) == 4
    recipe = replace(SGD, epochs=2, batch_size=4)
    head = _TwoClasses(batches)
    compare(head, recipe, tmp_path, [1, 4, 6])


class _TwoClasses:
    """Shares of two classes as shares of the network's ten."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Any:
        for images, labels in self._batches.epoch(number, start):
            yield images, nn.functional.pad(labels, (0, 8))


def test_checkpoints_change_nothing_however_often(few_digits: DigitImages, tmp_path: Path) -> None:
    found = []
    for seconds in (0.0, 0.02, 1000.0, None):
        trained = network()
        checkpoints = None if seconds is None else Checkpoints(tmp_path / str(seconds), seconds)
        batches = few_digits.train_batches(64, 3)
        history = train(trained, batches, SGD, device=CPU, checkpoints=checkpoints)
        found.append((trained, timeless(history)))
    for trained, history in found[1:]:
        assert_equal_weights(trained, found[0][0])
        assert history == found[0][1]
    assert not (tmp_path / "1000.0").exists()


def test_a_finished_training_gives_the_same_again(few_digits: DigitImages, tmp_path: Path) -> None:
    checkpoints, batches = Checkpoints(tmp_path / "c", 0), few_digits.train_batches(64, 3)
    first, second = network(), network(1)
    history = train(first, batches, SGD, device=CPU, checkpoints=checkpoints)
    rows: list[Any] = []
    again = train(
        second,
        batches,
        SGD,
        device=CPU,
        checkpoints=checkpoints,
        backward=until(0),
        log=rows.append,
    )
    assert again == rows == history
    assert_equal_weights(first, second)


def test_epochs_that_were_done_are_told_again_and_seconds_add_up(
    few_digits: DigitImages, tmp_path: Path
) -> None:
    checkpoints, batches = Checkpoints(tmp_path / "c", 0), few_digits.train_batches(64, 3)
    rows: list[dict[str, float]] = []
    with pytest.raises(BrokenOffError):
        train(network(), batches, SGD, device=CPU, checkpoints=checkpoints, backward=until(7))
    history = train(
        network(),
        batches,
        SGD,
        device=CPU,
        checkpoints=checkpoints,
        log=lambda row: rows.append(dict(row)),
    )
    assert rows == history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    seconds = [row["seconds"] for row in history]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


class Counter:
    """Steps that keep something of their own."""

    def __init__(self) -> None:
        self.seen = torch.zeros(())

    def __call__(self, step: Step) -> Tensor:
        loss = plain(step)
        self.seen = 0.5 * self.seen + loss
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.seen = state["seen"]


def test_what_the_steps_keep_goes_on(few_digits: DigitImages, tmp_path: Path) -> None:
    batches, checkpoints = few_digits.train_batches(64, 3), Checkpoints(tmp_path / "c", 0)
    whole, broken, resumed = Counter(), Counter(), Counter()
    train(network(), batches, SGD, device=CPU, backward=whole, state=whole)
    settings: dict[str, Any] = {"device": CPU, "checkpoints": checkpoints}
    with pytest.raises(BrokenOffError):
        train(network(), batches, SGD, backward=until(8, broken), state=broken, **settings)
    train(network(), batches, SGD, backward=resumed, state=resumed, **settings)
    assert torch.equal(resumed.seen, whole.seen)


def test_the_checkpoint_of_another_network_is_one_clear_error(
    few_digits: DigitImages, tmp_path: Path
) -> None:
    batches, checkpoints = few_digits.train_batches(64, 3), Checkpoints(tmp_path / "c", 0)
    with pytest.raises(BrokenOffError):
        train(network(), batches, SGD, device=CPU, checkpoints=checkpoints, backward=until(2))
    for other, recipe in ((network(width=4), SGD), (network(), ADAMW)):
        with pytest.raises(TrainingError, match=r"does not fit this training.*--fresh") as caught:
            train(other, batches, recipe, device=CPU, checkpoints=checkpoints)
        assert len(str(caught.value).splitlines()) == 1


def test_a_truncated_checkpoint_costs_steps_and_changes_nothing(
    few_digits: DigitImages, tmp_path: Path
) -> None:
    batches, checkpoints = few_digits.train_batches(64, 3), Checkpoints(tmp_path / "c", 0)
    whole, resumed = network(), network(1)
    train(whole, batches, SGD, device=CPU)
    with pytest.raises(BrokenOffError):
        train(network(), batches, SGD, device=CPU, checkpoints=checkpoints, backward=until(6))
    newest = max(checkpoints.folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="0006.checkpoint: cannot be read"):
        train(resumed, batches, SGD, device=CPU, checkpoints=checkpoints)
    assert_equal_weights(whole, resumed)


def test_randomness_is_the_trainings_own(few_digits: DigitImages) -> None:
    """The seed decides dropout; what the caller draws does not change it, nor is it changed."""
    found = []
    for before, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        trained = network()
        train(trained, few_digits.train_batches(64, 3), SGD, device=CPU, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(trained.state_dict()["0.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_randomness_is_given_back_after_an_error() -> None:
    state = torch.get_rng_state()
    with contextlib.suppress(KeyError), own_randomness(CPU):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_goes_on_from_the_same_bits(
    few_digits: DigitImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kernels that add in one order, also what follows is the same."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    batches, checkpoints = few_digits.train_batches(64, 3), Checkpoints(tmp_path / "c", 0)
    settings: dict[str, Any] = {"device": torch.device("cuda"), "seed": 5}
    whole, resumed = network(), network(9)
    torch.use_deterministic_algorithms(True)
    try:
        train(whole, batches, LAST, **settings)
        with pytest.raises(BrokenOffError):
            train(network(), batches, LAST, checkpoints=checkpoints, backward=until(7), **settings)
        train(resumed, batches, LAST, checkpoints=checkpoints, **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_weights(whole, resumed)
