"""Random images in the place of a data set, to time what is done with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from octnas.data.batches import Batch, Batches, TrainingBatches
from octnas.data.order import WHOLE, Part


@dataclass
class RandomImages:
    """A few batches of random images with random labels; see `octnas.data.images.Images`.

    Attributes:
        classes: their names, by label.
        size: channels, height and width.
        steps: batches of an epoch.
        counts: images of each part, which ``count`` tells; only one batch of each is there.
    """

    classes: tuple[str, ...]
    size: tuple[int, int, int]
    steps: int
    counts: Mapping[str, int]

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """The same batch at every step."""
        return _Repeated(self._batch(batch_size // part.ranks, seed), self.steps)

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """One batch, as large as the part allows."""
        return [self._batch(min(batch_size, most or batch_size, self.count(part)), 0)]

    def count(self, part: str) -> int:
        """Images that the part would have."""
        return self.counts[part]

    def _batch(self, count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, *self.size, generator=generator)
        return images, torch.randint(len(self.classes), (count,), generator=generator)


@dataclass(frozen=True)
class _Repeated:
    batch: Batch
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        """Always the same."""
        for _ in range(start, self.steps):
            yield self.batch
