"""The four parts of a data set as batches: train, rank, read and val."""

from collections.abc import Iterator, Sized
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octnas.training.digits import MEAN, SIZE, STD, make_digits
from octnas.training.folder import INTERPOLATION, FolderImages, class_folders
from octnas.training.settings import DataSettings, DigitsSettings

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)``, normalised float32, and labels ``(n,)`` int64."""


DIGITS = tuple(str(digit) for digit in range(10))


class Batches(Sized, Protocol):
    """Batches of one epoch per iteration; shuffled and augmented anew each time if for training."""

    def __iter__(self) -> Iterator[Batch]: ...


class Images(Protocol):
    """A data set as training and scoring see it.

    Attributes:
        classes: their names, by label.
    """

    classes: tuple[str, ...]

    def train_batches(self, batch_size: int, seed: int) -> Batches:
        """The training part: shuffled, augmented, without the last incomplete batch."""
        ...

    def batches(self, part: str, batch_size: int) -> Batches:
        """A part in its order, without augmentation; ``"train"``, ``"rank"``, …"""
        ...

    def count(self, part: str) -> int:
        """Images of a part."""
        ...


class DigitImages:
    """Cluttered digits, held in memory."""

    def __init__(self, settings: DigitsSettings) -> None:
        self.classes = DIGITS
        self._padding = settings.padding
        self._parts = make_digits(settings)

    def train_batches(self, batch_size: int, seed: int) -> Batches:
        """See `Images.train_batches`."""
        return _Shuffled(*self._parts["train"], batch_size, self._padding, seed)

    def batches(self, part: str, batch_size: int) -> Batches:
        """See `Images.batches`."""
        images, labels = self._parts[part]
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        return [(_normalise(some), targets) for some, targets in pairs]

    def count(self, part: str) -> int:
        """See `Images.count`."""
        return len(self._parts[part][1])


class _Shuffled:
    """Training batches from images in memory, randomly shifted."""

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, padding: int, seed: int
    ) -> None:
        self._images = F.pad(images, [padding] * 4)
        self._labels = labels
        self._batch_size = batch_size
        self._shifts = 2 * padding + 1
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._labels) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self._labels), generator=self._generator)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            chosen = order[start : start + self._batch_size]
            yield _normalise(self._crop(self._images[chosen])), self._labels[chosen]

    def _crop(self, padded: Tensor) -> Tensor:
        """A random crop of every padded image."""
        count = len(padded)
        corner = torch.randint(self._shifts, (2, count, 1), generator=self._generator)
        rows, columns = corner + torch.arange(SIZE)
        return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None]][
            :, None
        ]


def _normalise(images: Tensor) -> Tensor:
    """uint8 digits to normalised float32."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


def open_images(settings: DataSettings, input_size: tuple[int, int, int]) -> Images:
    """The data set that the settings describe, at the input size of the networks.

    Raises:
        DataError: images that cannot be found or do not fit the input size.
    """
    if isinstance(settings, DigitsSettings):
        return DigitImages(settings)
    return FolderImages(settings, input_size)


def count_classes(settings: DataSettings) -> int:
    """How many classes the data has, without reading images.

    Raises:
        DataError: the training folder cannot be found.
    """
    if isinstance(settings, DigitsSettings):
        return len(DIGITS)
    return len(class_folders(settings))


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
