"""Batches of digits."""

from collections import Counter

import pytest
import torch

from octnas.data.digits import DigitImages
from octnas.data.order import Part
from tests.training.small import digits


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order() -> None:
    images = DigitImages(digits(96, 10, 10, 10, padding=0))
    everything = images.batches("train", 96)
    (whole, labels) = next(iter(everything))
    batches = images.train_batches(32, seed=0)
    assert len(batches) == 3
    epochs = [list(batches.epoch(number)) for number in range(2)]
    for epoch in epochs:
        shown = torch.cat([x for x, _ in epoch])
        assert Counter(torch.cat([y for _, y in epoch]).tolist()) == Counter(labels.tolist())
        assert torch.equal(shown.flatten(1).sum(1).sort()[0], whole.flatten(1).sum(1).sort()[0])
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_the_seed_decides_order_and_shifts(few_digits: DigitImages) -> None:
    first, again, other = (
        next(few_digits.train_batches(32, seed).epoch(0))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_epoch_from_its_middle(few_digits: DigitImages) -> None:
    whole = list(few_digits.train_batches(32, 0).epoch(2))
    rest = list(few_digits.train_batches(32, 0).epoch(2, 7))
    assert len(rest) == 3
    for found, expected in zip(rest, whole[7:], strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_every_batch(few_digits: DigitImages, ranks: int) -> None:
    whole = list(few_digits.train_batches(32, 0).epoch(1))
    parts = [
        list(few_digits.train_batches(32, 0, Part(rank, ranks)).epoch(1)) for rank in range(ranks)
    ]
    for step, (shown, labels) in enumerate(whole):
        shares = [part[step] for part in parts]
        assert torch.equal(torch.stack([x for x, _ in shares], 1).flatten(0, 1), shown)
        assert torch.equal(torch.stack([y for _, y in shares], 1).flatten(), labels)


def test_crops_shift_by_at_most_the_padding() -> None:
    images = DigitImages(digits(64, 10, 10, 10, padding=1))
    (whole, _) = next(iter(images.batches("train", 64)))
    background = float(whole.min())
    padded = torch.nn.functional.pad(whole, [1] * 4, value=background)
    shifts = [padded[:, :, y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
    (shown, _) = next(images.train_batches(64, seed=0).epoch(0))
    used = set()
    for image in shown:
        fitting = [i for i, shift in enumerate(shifts) if (shift == image).flatten(1).all(1).any()]
        assert fitting
        used.add(fitting[0])
    assert len(used) > 5


def test_evaluation_batches_cover_a_part_in_order(few_digits: DigitImages) -> None:
    batches = list(few_digits.batches("val", 30))
    assert [len(labels) for _, labels in batches] == [30, 30, 20]
    assert few_digits.count("val") == 80


def test_an_incomplete_last_batch_is_left_out_of_training(few_digits: DigitImages) -> None:
    batches = few_digits.train_batches(300, seed=0)
    assert len(batches) == 1
    assert [len(labels) for _, labels in batches.epoch(0)] == [300]
