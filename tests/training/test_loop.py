import math

import pytest
import torch
from torch import nn

from octnas.data.digits import DigitImages
from octnas.device import choose_device, cpu_threads
from octnas.errors import SettingError, TrainingError
from octnas.training.evaluate import evaluate
from octnas.training.loop import train
from octnas.training.settings import Recipe
from octnas.training.step import Step, plain

CPU = torch.device("cpu")


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


def test_a_lost_loss_is_an_error(few_digits: DigitImages) -> None:
    with pytest.raises(TrainingError, match=r"lower recipe\.lr"):
        train(linear(), few_digits.train_batches(32, 0), Recipe(epochs=9, lr=1e30), device=CPU)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"optimizer": "sgdx"}, "optimizer"), ({"scheduler": "none"}, "scheduler")],
)
def test_names_that_timm_does_not_know(
    few_digits: DigitImages, change: dict[str, str], key: str
) -> None:
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


def test_evaluate_counts_every_image_alike() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    network = nn.Identity().train()
    measured = evaluate(network, batches, CPU)
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


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    with cpu_threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
