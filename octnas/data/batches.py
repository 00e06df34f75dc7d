"""Batches of images and labels, as training and scoring take them.

In which order training shows images, and which of them a rank sees.

The global random generators, for libraries that draw from them.
"""

import contextlib
import random
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Part:
    """The share of every batch that one of several ranks trains with.

    Attributes:
        rank: of this process, from 0.
        ranks: how many there are.
    """

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.rank < self.ranks, "rank", self.rank, f"0 to {self.ranks - 1}")

    def of(self, batch: Tensor) -> Tensor:
        """This rank's entries of a batch: together, the ranks have each entry once."""
        return batch[self.rank :: self.ranks]

    def check(self, batch_size: int) -> None:
        """Refuse batches that the ranks cannot share evenly.

        Raises:
            SettingError: naming the batch size.
        """
        fits = batch_size % self.ranks == 0
        require(fits, "batch_size", batch_size, f"a multiple of the {self.ranks} ranks")


WHOLE = Part()


def spread(count: int, most: int) -> list[int]:
    """The positions of ``most`` of ``count`` images, evenly spread; of all where ``most`` is 0.

    A part may be in the order of its classes, so that its beginning is no sample of it.
    """
    most = min(most or count, count)
    return [index * count // most for index in range(most)]


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Indices in an order of this epoch's own and a seed for each, whole batches only.

    Decided by the arguments alone, so that a training can go on in the middle of an epoch, and
    the same on all ranks, whatever their number.

    Returns:
        Both ``(batches, batch_size)`` int64.
    """
    generator = epoch_generator(seed, epoch)
    batches = count // batch_size
    order = torch.randperm(count, generator=generator)[: batches * batch_size]
    seeds = torch.randint(2**31, (batches, batch_size), generator=generator)
    return order.view(batches, batch_size), seeds


def epoch_generator(seed: int, epoch: int, stream: int = 0) -> torch.Generator:
    """A generator of one epoch's draws; streams with other numbers are independent."""
    mixed = np.random.SeedSequence((seed, epoch, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators by a seed, and as they were afterwards."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            # Not `torch.manual_seed`, which seeds accelerators too, and they would stay so.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
