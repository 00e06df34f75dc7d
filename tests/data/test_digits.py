"""Batches of digits."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from octnas.data.batches import Part
from octnas.data.digits import DIGIT, MEAN, SIZE, STD, DigitImages, make_digits
from octnas.data.settings import DigitsSettings
from tests.training.small import digits

PARTS = ("train", "search_val", "read", "val")


def whole_digits(images: torch.Tensor) -> list[set[int]]:
    """For each image the source digits that it holds whole: nowhere darker than the source."""
    sources = np.minimum(load_digits().images * 16, 255).astype(np.int32)
    found = []
    for image in images[:, 0].numpy().astype(np.int32):
        windows = np.lib.stride_tricks.sliding_window_view(image, (DIGIT, DIGIT)).reshape(-1, 64)
        flat = sources.reshape(-1, 64)
        inside = np.array([(window >= flat).all(axis=1) for window in windows]).any(axis=0)
        found.append(set(np.flatnonzero(inside).tolist()))
    return found


def test_shapes_types_and_ranges() -> None:
    settings = digits(50, 20, 10, 30)
    for part, count in zip(PARTS, (50, 20, 10, 30), strict=True):
        images, labels = make_digits(settings)[part]
        assert images.shape == (count, 1, SIZE, SIZE)
        assert images.dtype == torch.uint8
        assert images.max() > 200
        assert labels.shape == (count,)
        assert 0 <= labels.min() <= labels.max() <= 9


def test_every_image_holds_a_whole_digit_of_its_label() -> None:
    images, labels = make_digits(digits(20, 1, 1, 1))["train"]
    targets = load_digits().target
    for label, sources in zip(labels.tolist(), whole_digits(images), strict=True):
        assert label in targets[list(sources)]


@pytest.mark.slow
def test_parts_come_from_disjoint_source_digits() -> None:
    """With many images of each part nearly every source is used; none may be used twice."""
    parts = make_digits(digits(150, 150, 150, 150))
    targets = load_digits().target
    sources: dict[str, set[int]] = {}
    for part, (images, labels) in parts.items():
        # Where clutter lets several digits of the label fit, nothing can be said.
        sure = [
            [source for source in fitting if targets[source] == label]
            for fitting, label in zip(whole_digits(images), labels.tolist(), strict=True)
        ]
        sources[part] = {fitting[0] for fitting in sure if len(fitting) == 1}
        assert len(sources[part]) > 60
    for part in PARTS:
        for other in PARTS:
            assert part == other or not sources[part] & sources[other]


def test_the_seed_decides_the_images() -> None:
    first, again = (make_digits(digits(9, 9, 9, 9)) for _ in range(2))
    other = make_digits(digits(9, 9, 9, 9, seed=1))
    for part in PARTS:
        assert torch.equal(first[part][0], again[part][0])
        assert not torch.equal(first[part][0], other[part][0])


def test_stated_mean_and_deviation_are_those_of_the_training_part() -> None:
    pixels = make_digits(DigitsSettings())["train"][0].float() / 255
    assert float(pixels.mean()) == pytest.approx(MEAN[0], abs=0.01)
    assert float(pixels.std()) == pytest.approx(STD[0], abs=0.01)


def test_some_images_of_a_part() -> None:
    images = DigitImages(
        DigitsSettings(train_images=9, search_val_images=1, read_images=1, val_images=1)
    )
    ((every, labels),) = images.batches("train", 9)
    (first, second) = images.batches("train", 2, 3)
    assert torch.equal(torch.cat([first[0], second[0]]), every[[0, 3, 6]])
    assert torch.equal(torch.cat([first[1], second[1]]), labels[[0, 3, 6]])


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
