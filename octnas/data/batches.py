"""Batches of images and labels, as training and scoring take them."""

from collections.abc import Iterator, Sized
from typing import Protocol

from torch import Tensor

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
