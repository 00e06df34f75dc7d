"""Batches from a cache whose images hold their own number as their colour."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from octnas.data.augment import BatchAugment, Normalise
from octnas.data.batches import WHOLE, Part
from octnas.data.from_cache import CachedEvaluation, CachedImages, CachedTraining
from octnas.data.settings import AugmentSettings

COUNT, SIDE = 41, 8
CPU = torch.device("cpu")
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# Of the cache's images every second one, backwards; labelled by their place in the cache.
POSITIONS = list(range(0, 2 * COUNT, 2))[::-1]


@pytest.fixture
def images(tmp_path: Path) -> CachedImages:
    numbers = np.arange(2 * COUNT, dtype=np.uint8)
    pixels = np.broadcast_to(numbers[:, None, None, None], (2 * COUNT, SIDE, SIDE, 3))
    pixels.tofile(tmp_path / "pixels")
    shape = (2 * COUNT, SIDE, SIDE, 3)
    mapped = np.memmap(tmp_path / "pixels", np.uint8, mode="c", shape=shape)
    return CachedImages(torch.from_numpy(mapped), POSITIONS, POSITIONS, CPU)


def training(images: CachedImages, batch: int, part: Part = WHOLE) -> CachedTraining:
    augment = BatchAugment(AugmentSettings(), (SIDE, SIDE), *PLAIN, CPU)
    return CachedTraining(images, augment, batch, 3, part, CPU, squares=SIDE)


def numbers(pixels: torch.Tensor) -> list[int]:
    """What the colours say, if each image has but one."""
    values = 255 * pixels.flatten(1)
    assert torch.allclose(values, values[:, :1], atol=1e-2)
    return [round(value) for value in values[:, 0].tolist()]


def test_labels_belong_to_their_images(images: CachedImages) -> None:
    for pixels, labels in training(images, 6).epoch(0):
        assert numbers(pixels) == labels.tolist()


@pytest.mark.parametrize("batch", [1, 6, 41])
def test_an_epoch_shows_every_image_once(images: CachedImages, batch: int) -> None:
    batches = training(images, batch)
    epochs = [[labels for _, labels in batches.epoch(number)] for number in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(batches) == COUNT // batch
        shown = torch.cat(epoch).tolist()
        assert len(set(shown)) == COUNT // batch * batch
        assert set(shown) <= set(POSITIONS)
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()


def test_an_epoch_from_its_middle(images: CachedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would have gone on, and without reading what comes before."""
    whole = [list(training(images, 6).epoch(number)) for number in range(2)]
    read: list[int] = []
    gather = CachedImages.gather

    def counted(self: CachedImages, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(len(chosen))
        return gather(self, chosen)

    monkeypatch.setattr(CachedImages, "gather", counted)
    for number, start in ((1, 4), (0, 2), (1, 6)):
        read.clear()
        rest = list(training(images, 6).epoch(number, start))
        assert len(rest) == len(read) == 6 - start
        for (pixels, labels), expected in zip(rest, whole[number][start:], strict=True):
            assert torch.equal(pixels, expected[0])
            assert torch.equal(labels, expected[1])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_cover_every_batch(images: CachedImages, ranks: int) -> None:
    parts = [list(training(images, 6, Part(rank, ranks)).epoch(0)) for rank in range(ranks)]
    for step, (_, labels) in enumerate(training(images, 6).epoch(0)):
        shares = [part[step][1] for part in parts]
        assert all(len(share) == 6 // ranks for share in shares)
        assert sorted(torch.cat(shares).tolist()) == sorted(labels.tolist())


def test_fewer_images_than_a_batch_make_an_empty_epoch(images: CachedImages) -> None:
    batches = training(images, COUNT + 1)
    assert len(batches) == 0
    assert list(batches.epoch(0)) == []


@pytest.mark.parametrize("batch", [1, 7, 41, 50])
def test_evaluation_keeps_the_order(images: CachedImages, batch: int) -> None:
    shown = CachedEvaluation(images, batch, SIDE, (SIDE, SIDE), Normalise(*PLAIN, CPU), CPU)
    found = list(shown)
    assert len(found) == len(shown) == -(-COUNT // batch)
    assert torch.cat([labels for _, labels in found]).tolist() == POSITIONS
    assert [number for pixels, _ in found for number in numbers(pixels)] == POSITIONS


def test_the_thread_ends_with_its_iterator(images: CachedImages) -> None:
    before = threading.active_count()
    iterator = training(images, 4).epoch(0)
    next(iterator)
    assert threading.active_count() == before + 1
    del iterator
    end = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < end
    list(training(images, 4).epoch(0))
    assert threading.active_count() == before


def test_what_goes_wrong_in_the_thread_is_raised(images: CachedImages) -> None:
    with pytest.raises(IndexError):
        list(images.ahead(iter([torch.tensor([COUNT])])))


def test_batches_can_be_changed_without_changing_the_cache(images: CachedImages) -> None:
    first = next(iter(CachedEvaluation(images, 4, SIDE, (SIDE, SIDE), Normalise(*PLAIN, CPU), CPU)))
    first[0].zero_()
    chosen = torch.arange(4)
    images.gather(chosen)[0].zero_()
    assert images.gather(chosen)[0].flatten(1)[:, 0].tolist() == POSITIONS[:4]
