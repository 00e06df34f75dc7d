"""In which order training shows images, and which of them a rank sees."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from octnas.errors import require


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


def epoch_orders(count: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each epoch, indices in a new order and a seed for each, whole batches only.

    The same on all ranks, whatever their number.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = count // batch_size * batch_size
    while True:
        order = torch.randperm(count, generator=generator)
        seeds = torch.randint(2**31, (count,), generator=generator)
        yield order[:whole], seeds[:whole]
