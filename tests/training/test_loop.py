"""Training, and resumed trainings that give the same bits as uninterrupted ones."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from octnas.data.batches import Batch, TrainingBatches
from octnas.data.digits import DigitImages
from octnas.data.images import open_images
from octnas.data.settings import AugmentSettings, CacheSettings, ImagesSettings
from octnas.device import choose_device, cpu_threads
from octnas.errors import SettingError, TrainingError
from octnas.settings import flatten
from octnas.training.checkpoint import Checkpoints
from octnas.training.loop import Step, distilled, frozen, own_randomness, plain, train
from octnas.training.scoring import evaluate
from octnas.training.settings import DistillationSettings, Recipe
from tests.data.trees import make_tree, prepared
from tests.training.resuming import CPU, BrokenOffError, assert_equal_weights, timeless, until


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def test_training_lowers_the_loss_and_reports_every_epoch(few_digits: DigitImages) -> None:
    rows: list[dict[str, float]] = []
    steps: list[int] = []
    recipe = Recipe(epochs=5, batch_size=32, lr=0.05)

    def backward(step: Step) -> torch.Tensor:
        steps.append(step.number)
        return plain(step)

    history = train(
        linear(),
        few_digits.train_batches(32, 0),
        recipe,
        device=CPU,
        backward=backward,
        log=lambda row: rows.append(dict(row)),
    )
    assert steps == list(range(5 * 10))
    assert rows == history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_learning_rate_warms_up_and_falls_along_a_cosine(few_digits: DigitImages) -> None:
    recipe = Recipe(epochs=4, batch_size=32, lr=0.1, warmup_epochs=1)
    history = train(linear(), few_digits.train_batches(32, 0), recipe, device=CPU)
    # timm's cosine runs over all epochs; the warm-up replaces its beginning.
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]
    assert [row["lr"] for row in history] == pytest.approx(expected, abs=1e-6)


def test_the_same_seeds_give_the_same_network(few_digits: DigitImages) -> None:
    networks = []
    for _ in range(2):
        network = linear()
        train(network, few_digits.train_batches(32, 3), Recipe(epochs=2), device=CPU)
        networks.append(network)
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(first, second)


def test_an_infinite_loss_is_an_error(few_digits: DigitImages) -> None:
    with pytest.raises(TrainingError, match=r"lower recipe\.lr"):
        train(linear(), few_digits.train_batches(32, 0), Recipe(epochs=9, lr=1e30), device=CPU)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer": "sgdx"}, "optimizer"),
        ({"optimizer": "adahessian"}, "optimizer"),
        ({"scheduler": "none"}, "scheduler"),
    ],
)
def test_names_unknown_to_timm(few_digits: DigitImages, change: dict[str, str], key: str) -> None:
    with pytest.raises(SettingError, match=key):
        train(linear(), few_digits.train_batches(32, 0), Recipe(**change), device=CPU)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_training_part(few_digits: DigitImages) -> None:
    batches = few_digits.train_batches(1000, 0)
    with pytest.raises(SettingError, match="batch_size"):
        train(linear(), batches, Recipe(batch_size=1000), device=CPU)


def test_gradients_are_clipped(few_digits: DigitImages) -> None:
    """With a norm of at most 1e-3 and plain SGD no step moves further than lr × 1e-3."""
    network = linear()
    before = [parameter.clone() for parameter in network.parameters()]
    recipe = Recipe(
        epochs=1,
        optimizer="momentum",
        lr=1.0,
        momentum=0,
        weight_decay=0,
        warmup_epochs=0,
        clip_grad=1e-3,
    )
    train(network, few_digits.train_batches(64, 0), recipe, device=CPU)
    moved = [
        float((now - then).detach().norm())
        for now, then in zip(network.parameters(), before, strict=True)
    ]
    assert 0 < math.hypot(*moved) <= 5 * 1e-3 * 1.0001


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def trained(batches: TrainingBatches, **changes: object) -> tuple[nn.Module, list[float]]:
    """A network, and its losses."""
    network, recipe = convolutions(), Recipe(epochs=3, batch_size=64, **changes)  # type: ignore[arg-type]
    history = train(network, batches, recipe, device=CPU)
    return network, [row["train_loss"] for row in history]


def test_bfloat16_is_for_the_forward_pass_alone(few_digits: DigitImages) -> None:
    inside: list[torch.dtype] = []
    network, losses = convolutions(), []
    network[3].register_forward_hook(lambda *args: inside.append(args[2].dtype))

    def backward(step: Step) -> torch.Tensor:
        logits = step.forward(step.images)
        assert logits.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        loss = step.criterion(logits, step.labels)
        loss.backward()
        losses.append(loss.detach())
        return losses[-1]

    recipe = Recipe(epochs=3, batch_size=64, amp="bf16")
    batches = few_digits.train_batches(64, 0)
    history = train(network, batches, recipe, device=CPU, backward=backward)
    assert set(inside) == {torch.bfloat16}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())
    full = trained(batches)[1]
    assert [row["train_loss"] for row in history] == pytest.approx(full, rel=0.02)
    assert [row["train_loss"] for row in history] != full
    # And not for what comes after it.
    assert not torch.is_autocast_enabled("cpu")


def test_channels_last_is_another_layout_of_the_same(few_digits: DigitImages) -> None:
    batches = few_digits.train_batches(64, 0)
    network, losses = trained(batches, channels_last=True)
    plain_network, expected = trained(batches)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert network[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain_network[3].weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []

    def backward(step: Step) -> torch.Tensor:
        seen.append(step.images)
        return plain(step)

    colour = torch.randn(4, 3, 6, 6)
    stack = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    recipe = Recipe(epochs=1, batch_size=4, warmup_epochs=0, channels_last=True)
    train(stack, OneBatch(colour), recipe, device=CPU, backward=backward)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen[0], colour)


class OneBatch:
    """An epoch of one batch."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        yield from [(self._images, torch.zeros(len(self._images), dtype=torch.long))][start:]


def test_averaged_weights_take_the_place_of_the_last(few_digits: DigitImages) -> None:
    """timm's warm-up: the average is the network itself after the first step."""
    weights: list[torch.Tensor] = []
    network = linear()

    def backward(step: Step) -> torch.Tensor:
        if step.number:
            weights.append(network[1].weight.detach().clone())
        return plain(step)

    recipe = Recipe(epochs=2, batch_size=64, ema=0.6)
    batches = few_digits.train_batches(64, 0)
    last = linear()
    train(last, batches, Recipe(epochs=2, batch_size=64), device=CPU)
    train(network, batches, recipe, device=CPU, backward=backward)
    weights.append(last[1].weight.detach())
    average = weights[0]
    for number, value in enumerate(weights[1:], start=1):
        decay = min(0.6, 1 - (1 + number) ** (-2 / 3))
        average = decay * average + (1 - decay) * value
    assert torch.allclose(network[1].weight, average, atol=1e-6)
    assert not torch.allclose(network[1].weight, last[1].weight, atol=1e-6)
    assert network.training


def test_without_averaging_the_last_weights_stay(few_digits: DigitImages) -> None:
    network, _ = trained(few_digits.train_batches(64, 0), ema=0.0)
    again, _ = trained(few_digits.train_batches(64, 0))
    assert torch.equal(network[3].weight, again[3].weight)


@pytest.mark.parametrize(
    ("key", "value"),
    [("ema", 1.0), ("ema", -0.1), ("checkpoint_seconds", -1.0), ("checkpoint_seconds", math.inf)],
)
def test_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(SettingError, match=key):
        Recipe(**{key: value})  # type: ignore[arg-type]


def test_how_often_checkpoints_are_written_is_no_part_of_a_fingerprint() -> None:
    keys = set(flatten(Recipe(), "recipe"))
    assert "recipe.checkpoint_seconds" not in keys
    assert {"recipe.amp", "recipe.channels_last", "recipe.ema"} <= keys


def test_evaluation_weighs_all_images_equally() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    network = nn.Identity().train()
    measured = evaluate(network, batches, CPU).metrics
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    assert measured["top1"] == pytest.approx(2 / 3)
    assert measured["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert network.training


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu9", "cuda:99"):
        with pytest.raises(SettingError, match="device"):
            choose_device(name)


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    with cpu_threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


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
    """Train without and with interruptions, checkpointing after every step."""
    shape = next(batches.epoch(0))[0].shape
    whole = network(channels=shape[1])
    expected = train(whole, batches, recipe, device=CPU, seed=5, **settings)
    checkpoints = Checkpoints(folder / "checkpoints", 0)
    for index, steps in enumerate(breaks):
        # Its initialisation does not matter once there is a checkpoint.
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
    """With augmentation and mixing, with the same draws."""
    settings = ImagesSettings(
        root=str(make_tree(tmp_path / "tree")),
        search_val_per_class=2,
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


def test_epochs_that_were_done_are_reported_again_and_seconds_add_up(
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
    """Backward passes with a state."""

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


def test_the_state_of_backward_passes_is_restored(few_digits: DigitImages, tmp_path: Path) -> None:
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


def test_training_has_its_own_random_state(few_digits: DigitImages) -> None:
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


def test_randomness_is_restored_after_an_error() -> None:
    state = torch.get_rng_state()
    with contextlib.suppress(KeyError), own_randomness(CPU):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_resumes_from_the_same_bits(
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


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_published_loss(weight: float, temperature: float) -> None:
    """Against sums over classes in float64, with its gradient; the teacher is not changed."""
    torch.manual_seed(0)
    logits, taught = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5)
    labels = torch.arange(6) % 5
    teacher = nn.Sequential(nn.BatchNorm1d(5))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    known = frozen(teacher, Recipe(), CPU)
    student = logits.clone().requires_grad_()

    def criterion(found: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(found, wanted, label_smoothing=0.1)

    step = Step(0, taught, labels, lambda images: student, criterion)
    settings = DistillationSettings(weight=weight, temperature=temperature)
    loss = distilled(known, settings)(step)
    p, q = (
        torch.exp(one.double() / temperature)
        / torch.exp(one.double() / temperature).sum(1)[:, None]
        for one in (teacher(taught), logits)
    )
    divergence = (p * (p.log() - q.log())).sum(1).mean() * temperature**2
    expected = (1 - weight) * criterion(logits.double(), labels) + weight * divergence
    assert expected > 0.3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.grad is not None
    if weight == 1:
        gradient = temperature * (q - p) / 6
        torch.testing.assert_close(student.grad.double(), gradient, rtol=1e-4, atol=1e-6)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_computes_as_those_whom_it_teaches() -> None:
    """In the recipe's precision and memory format; bfloat16 has 8 bits."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(8, 16, 6, 6)
    with torch.no_grad():
        exact = teacher(images)
    recipe = Recipe(amp="bf16", channels_last=True)
    found = frozen(copy.deepcopy(teacher), recipe, CPU)(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found.bfloat16().float(), found)
    off = (found - exact).abs().max() / exact.std()
    assert 2**-12 < off < 2**-3
    seen: list[Tensor] = []
    teacher[0].register_forward_hook(lambda conv, _, out: seen.append(conv.weight))
    again = frozen(teacher, replace(recipe, amp="none"), CPU)(images)
    torch.testing.assert_close(again, exact, rtol=1e-4, atol=1e-4 * float(exact.std()))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
