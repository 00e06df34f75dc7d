"""The four parts of a data set as batches: train, rank, read and val."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from octnas.data.augment import BatchAugment, BatchMixup, Normalise
from octnas.data.cached import CachedEvaluation, CachedImages, CachedTraining
from octnas.data.digits import MEAN, STD, DigitImages
from octnas.data.files import (
    INTERPOLATION,
    FileEvaluation,
    Files,
    FileTraining,
    transforms,
)
from octnas.data.image_list import Entry, read_images
from octnas.data.order import WHOLE, Part, epoch_generator
from octnas.data.prepare import CHECKED_FOLDER, build_missing, open_cache
from octnas.data.settings import DataSettings, DigitsSettings, ImagesSettings
from octnas.data.sources import open_reader
from octnas.errors import require

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)``, normalised float32, and labels ``(n,)`` int64.

With Mixup or CutMix, labels are shares of the classes, ``(n, classes)`` float32.
"""


class Batches(Sized, Protocol):
    """Batches that are the same in every iteration."""

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingBatches(Sized, Protocol):
    """Batches of any epoch; an epoch has ``len`` of them."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, decided by the seed and the epoch's number alone.

        Args:
            number: of the epoch, from 0; each has an order and augmentation of its own.
            start: how many of its batches are left out; their images are not decoded.
        """
        ...


class Images(Protocol):
    """A data set as training and scoring see it.

    Attributes:
        classes: their names, by label.
    """

    classes: tuple[str, ...]

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """The training part: shuffled, augmented, without the last incomplete batch.

        Args:
            batch_size: images of a step, of all ranks together.
            seed: of order and augmentation.
            part: which of them this rank reads.
        """
        ...

    def batches(self, part: str, batch_size: int) -> Batches:
        """A part in its order, without augmentation; ``"train"``, ``"rank"``, …"""
        ...

    def count(self, part: str) -> int:
        """Images of a part."""
        ...


@dataclass(frozen=True)
class Data:
    """A data set that was prepared; picklable, so that any process can open it.

    Attributes:
        settings: of the data.
        folder: with the list of the images.
    """

    settings: DataSettings
    folder: Path


def open_images(
    data: Data, input_size: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Images:
    """The data set as batches, at the input size of the networks.

    A node that lacks the cache builds it first.

    Args:
        data: settings and image list.
        input_size: channels, height and width.
        device: where cached images are augmented and handed out; others come on the CPU.

    Raises:
        DataError: images that cannot be found, or are others than those of the list.
    """
    if isinstance(data.settings, DigitsSettings):
        return DigitImages(data.settings)
    return ListedImages(data.settings, data.folder, input_size, torch.device(device))


class ListedImages:
    """Images of a list, from files or from a cache. See `Images`."""

    def __init__(
        self,
        settings: ImagesSettings,
        folder: Path,
        input_size: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._settings, self._input_size, self._device = settings, input_size, device
        self._list = read_images(folder)
        self.classes = self._list.classes
        self._cache = open_cache(
            settings,
            input_size,
            self._list.key,
            len(self._list.entries),
            checked=folder / CHECKED_FOLDER,
        )
        if self._cache.resolution:
            build_missing(self._cache, self._list, settings)
        self._positions = {
            part: self._list.positions(part) for part in ("train", "rank", "read", "val")
        }

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """See `Images.train_batches`."""
        part.check(batch_size)
        plain = self._train_batches(batch_size, seed, part)
        augment = self._settings.augment
        if augment.mixup or augment.cutmix:
            pairs = batch_size // part.ranks % 2 == 0
            allowed = f"even on each of the {part.ranks} ranks, with mixup or cutmix"
            require(pairs, "batch_size", batch_size, allowed)
            return _Mixed(plain, BatchMixup(augment, len(self.classes)), seed)
        return plain

    def _train_batches(self, batch_size: int, seed: int, part: Part) -> TrainingBatches:
        if self._cache.resolution:
            size = self._input_size[1:]
            settings = self._settings
            augment = BatchAugment(
                settings.augment, size, settings.mean, settings.std, self._device
            )
            images = self._cached("train")
            return CachedTraining(images, augment, batch_size, seed, part, self._device)
        files = self._files("train", training=True)
        return FileTraining(files, self._settings.workers, batch_size, seed, part)

    def batches(self, part: str, batch_size: int) -> Batches:
        """See `Images.batches`."""
        if self._cache.resolution:
            normalise = Normalise(self._settings.mean, self._settings.std, self._device)
            size = self._input_size[1:]
            resize = self._evaluation_resolution
            return CachedEvaluation(
                self._cached(part), batch_size, resize, size, normalise, self._device
            )
        files = self._files(part, training=False)
        return FileEvaluation(files, self._settings.workers, batch_size)

    def count(self, part: str) -> int:
        """See `Images.count`."""
        return len(self._positions[part])

    @cached_property
    def _evaluation_resolution(self) -> int:
        """What evaluation resizes images to before it crops, as timm does."""
        return int(max(self._input_size[1:]) / self._settings.crop_pct)

    def _entries(self, part: str) -> list[Entry]:
        return [self._list.entries[position] for position in self._positions[part]]

    def _cached(self, part: str) -> CachedImages:
        labels = [entry.label for entry in self._entries(part)]
        return CachedImages(self._cache.pixels, self._positions[part], labels, self._device)

    def _files(self, part: str, *, training: bool) -> Files:
        transform = transforms(self._settings, self._input_size)[0 if training else 1]
        entries = self._entries(part)
        names, labels = [e.name for e in entries], [e.label for e in entries]
        return Files(names, labels, open_reader(self._settings), transform)


class _Mixed:
    """Training batches whose images are mixed in pairs."""

    def __init__(self, batches: TrainingBatches, mixup: BatchMixup, seed: int) -> None:
        self._batches, self._mixup, self._seed = batches, mixup, seed

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """See `TrainingBatches.epoch`."""
        generator = epoch_generator(self._seed, number, stream=1)
        seeds = torch.randint(2**31, (len(self),), generator=generator)[start:].tolist()
        batches = self._batches.epoch(number, start)
        for (images, labels), seed in zip(batches, seeds, strict=True):
            yield self._mixup(images, labels, seed)


def preparation(settings: DataSettings) -> dict[str, Any]:
    """How images are prepared for evaluation, in the terms of a timm pretrained config."""
    if isinstance(settings, DigitsSettings):
        return {"mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bilinear"}
    return {
        "mean": settings.mean,
        "std": settings.std,
        "crop_pct": settings.crop_pct,
        "interpolation": INTERPOLATION,
    }
