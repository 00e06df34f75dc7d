import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.data.digits import DigitImages
from octnas.data.images import Batch
from octnas.errors import TrainingError
from octnas.nn.supernet import subnet
from octnas.space import SearchSpace
from octnas.training.evaluate import evaluate
from octnas.training.finetune import Finetune, _FirstSteps
from octnas.training.scoring import Scorer
from octnas.training.settings import Recipe
from tests.training.resuming import CPU

RECIPE = Recipe(batch_size=32, lr=0.2, clip_grad=1)


class _Numbered:
    """Batches that say which epoch and which of its batches they are."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for index in range(start, self._count):
            yield torch.tensor([number, index]), torch.tensor(0)


@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 3), st.data())
def test_the_steps_of_an_epoch_are_those_that_follow(
    count: int, steps: int, number: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, steps))
    found = [
        tuple(x.tolist()) for x, _ in _FirstSteps(_Numbered(count), steps).epoch(number, start)
    ]
    expected = range(number * steps + start, (number + 1) * steps)
    assert found == [divmod(step, count) for step in expected]


def test_a_candidate_learns_and_the_supernet_stays(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    before = copy.deepcopy(trained.state_dict())
    half = digit_space.uniform(0.5).alphas
    # Ten batches are an epoch: it goes on with the next.
    tuned = Finetune(65, RECIPE)(trained, half, few_digits, CPU)
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())
    batches = few_digits.batches("train", 64)
    at_first = evaluate(subnet(trained, half), batches, CPU)["loss"]
    assert evaluate(tuned, batches, CPU)["loss"] < 0.98 * at_first


def test_no_more_steps_are_taken_than_asked_for(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    """One step of plain gradient descent, by hand."""
    half = digit_space.uniform(0.5).alphas
    recipe = replace(RECIPE, optimizer="momentum", momentum=0.0, weight_decay=0.0, clip_grad=0.0)
    tuned = Finetune(1, recipe)(trained, half, few_digits, CPU)
    network = subnet(trained, half).train()
    images, labels = next(islice(few_digits.train_batches(32, 0).epoch(0), 1))
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    for after, weight in zip(tuned.parameters(), network.parameters(), strict=True):
        assert weight.grad is not None
        assert torch.allclose(after, weight - recipe.lr * weight.grad, atol=1e-6)
        assert not torch.equal(after, weight) or not weight.grad.any()


def test_a_finetuned_score_depends_on_the_candidate_alone(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    half, full = digit_space.uniform(0.5).alphas, digit_space.uniform(1).alphas

    def scorer(finetune: Finetune | None) -> Scorer:
        sizes = {"calibration_batches": 2, "batch_size": 60}
        network = copy.deepcopy(trained)
        return Scorer(network, few_digits, "rank", device=CPU, finetune=finetune, **sizes)

    tuned = scorer(Finetune(15, RECIPE))
    first, other, again = tuned(half), tuned(full), tuned(half)
    assert first == again != other
    assert scorer(Finetune(15, RECIPE))(half) == first
    assert scorer(None)(half)["loss"] != pytest.approx(first["loss"], rel=1e-3)


def test_steps_that_diverge_are_an_error(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    wild = Finetune(12, replace(RECIPE, lr=1e20, clip_grad=0.0))
    with pytest.raises(TrainingError):
        wild(trained, digit_space.uniform(0.5).alphas, few_digits, CPU)
