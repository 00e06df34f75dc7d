"""Batches of images and labels: their types, their order, and the share of each process."""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from octnas.errors import require

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)``, normalised float32, and labels ``(n,)`` int64.

With Mixup or CutMix, labels are shares of the classes, ``(n, classes)`` float32.
"""


Shape = Callable[[Image.Image, Sequence[float]], np.ndarray]
"""What makes ``(3, H, W)`` uint8 of an RGB image, by the image's random numbers; picklable."""


class Asked(Sized, Protocol):
    """Indices ``(n,)`` of the images of each batch, and their random numbers ``(n, draws)``."""

    def __getitem__(self, batch: int, /) -> tuple[Tensor, Tensor]: ...


class StoredImages(Sized, Protocol):
    """Images with labels, from files or from a cache."""

    def some(self, chosen: Sequence[int]) -> Self:
        """Those at some positions."""
        ...

    def shaped(self, asked: Asked, shape: Shape, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``(n, 3, H, W)`` uint8 and labels ``(n,)``, prepared ahead, from a batch on."""
        ...


class Batches(Sized, Protocol):
    """Batches that are the same in every iteration."""

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingBatches(Sized, Protocol):
    """Batches of any epoch; an epoch has ``len`` of them."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, which depend on the seed and the epoch's number alone.

        Args:
            number: of the epoch, from 0; each has its own order and augmentation.
            start: batches to skip; their images are not decoded.
        """
        ...


@dataclass(frozen=True)
class Part:
    """The share of every batch that one of several ranks trains on.

    Attributes:
        rank: of this process, from 0.
        ranks: how many there are.
    """

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.rank < self.ranks, "rank", self.rank, f"0 to {self.ranks - 1}")

    def of(self, batch: Tensor) -> Tensor:
        """This rank's entries of a batch; every entry belongs to exactly one rank."""
        return batch[self.rank :: self.ranks]

    def check(self, batch_size: int) -> None:
        """Refuse batches that the ranks cannot share evenly.

        Raises:
            SettingError: naming the batch size.
        """
        fits = batch_size % self.ranks == 0
        require(fits, "batch_size", batch_size, f"a multiple of the {self.ranks} processes")


WHOLE = Part()


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, evenly spread; all where ``most`` is 0.

    Images may be sorted by class, so the first ones would not be a representative sample.
    """
    most = min(most or count, count)
    return [index * count // most for index in range(most)]


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> Tensor:
    """Shuffled indices ``(batches, batch_size)`` int64, whole batches only.

    They depend on the arguments alone, so that a training can resume in the middle of an epoch.
    """
    batches = count // batch_size
    order = torch.randperm(count, generator=epoch_generator(seed, epoch))
    return order[: batches * batch_size].view(batches, batch_size)


def epoch_generator(seed: int, epoch: int, *stream: int) -> torch.Generator:
    """A generator for one epoch; other numbers of a stream make an independent one."""
    mixed = np.random.SeedSequence((seed, epoch, *stream)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


@dataclass(frozen=True)
class Epoch:
    """Image indices of an epoch's batches, with random numbers for each image of this rank."""

    order: Tensor
    draws: int
    seed: int
    number: int
    part: Part

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Indices ``(n,)`` and random numbers ``(n, draws)`` of this rank."""
        generator = epoch_generator(self.seed, self.number, 2, batch)
        draws = torch.rand((self.order.shape[1], self.draws), generator=generator)
        return self.part.of(self.order[batch]), self.part.of(draws)
