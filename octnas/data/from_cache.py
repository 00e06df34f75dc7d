"""Batches from a cache: gathered beside the training, finished on its device."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torchvision.transforms import v2

from octnas.data.augment import BatchAugment, Normalise
from octnas.data.batches import Batch, Part, epoch_order


class CachedImages:
    """Some images of a cache with their labels.

    Args:
        pixels: of the whole cache, ``(count, side, side, 3)`` uint8.
        positions: of these images in it.
        labels: of these images.
        device: where batches go.
    """

    def __init__(
        self,
        pixels: Tensor,
        positions: Sequence[int],
        labels: Sequence[int],
        device: torch.device,
    ) -> None:
        self._pixels, self._device = pixels, device
        self._positions = torch.tensor(positions, dtype=torch.long)
        self._labels = torch.tensor(labels, dtype=torch.long)

    def __len__(self) -> int:
        return len(self._labels)

    def some(self, chosen: Sequence[int]) -> "CachedImages":
        """Those at some positions."""
        some = torch.tensor(chosen, dtype=torch.long)
        positions, labels = self._positions[some].tolist(), self._labels[some].tolist()
        return CachedImages(self._pixels, positions, labels, self._device)

    def gather(self, chosen: Tensor) -> Batch:
        """Pixels ``(N, side, side, 3)`` uint8 and labels by index, on the CPU."""
        # Not torch's: in this thread it would start threads that take the cores from training.
        places = self._positions[chosen].numpy()
        pixels = torch.from_numpy(self._pixels.numpy().take(places, axis=0))
        labels = self._labels[chosen]
        if self._device.type == "cuda":
            return pixels.pin_memory(), labels.pin_memory()
        return pixels, labels

    def ahead(self, chosen: Iterator[Tensor]) -> Iterator[Batch]:
        """What `gather` gives, one batch ahead of its use: reading the file releases Python."""
        with ThreadPoolExecutor(1) as pool:
            waiting: Future[Batch] | None = None
            for some in chosen:
                current, waiting = waiting, pool.submit(self.gather, some)
                if current is not None:
                    yield current.result()
            if waiting is not None:
                yield waiting.result()


class CachedTraining:
    """Training batches; shuffled and augmented anew in each epoch.

    Args:
        images: of the training part.
        augment: on the device.
        batch_size: of all ranks together.
        seed: of order and augmentation.
        part: which share of every batch is this rank's.
        device: where batches go.
        squares: side to which larger squares are brought before augmentation, which does not
            smooth what it makes smaller.
    """

    def __init__(
        self,
        images: CachedImages,
        augment: BatchAugment,
        batch_size: int,
        seed: int,
        part: Part,
        device: torch.device,
        *,
        squares: int,
    ) -> None:
        self._images, self._augment, self._device = images, augment, device
        self._batch_size, self._seed, self._part = batch_size, seed, part
        self._squares, self._shrink = squares, v2.Resize(squares, antialias=True)

    def __len__(self) -> int:
        return len(self._images) // self._batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """See `octnas.data.batches.TrainingBatches.epoch`."""
        order, seeds = epoch_order(len(self._images), self._batch_size, self._seed, number)
        chosen = [self._part.of(batch) for batch in order[start:]]
        batches = self._images.ahead(iter(chosen))
        own = [int(self._part.of(batch)[0]) for batch in seeds[start:]]
        for (pixels, labels), seed in zip(batches, own, strict=True):
            yield (
                self._augment(self._shrunk(pixels), seed),
                labels.to(self._device, non_blocking=True),
            )

    def _shrunk(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] <= self._squares:
            return pixels
        moved = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        shrunk: Tensor = self._shrink(moved)
        return shrunk.permute(0, 2, 3, 1)


class CachedEvaluation:
    """A part in its order, as timm's evaluation transform prepares it.

    Args:
        images: of the part.
        batch_size: images of a batch.
        resize: side to which the squares are brought first.
        size: height and width of the centre crop.
        normalise: on the device.
        device: where batches go.
    """

    def __init__(
        self,
        images: CachedImages,
        batch_size: int,
        resize: int,
        size: tuple[int, int],
        normalise: Normalise,
        device: torch.device,
    ) -> None:
        self._images, self._batch_size, self._device = images, batch_size, device
        self._shape = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])
        self._normalise = normalise

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        chosen = torch.arange(len(self._images)).split(self._batch_size)
        for pixels, labels in self._images.ahead(iter(chosen)):
            moved = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            shaped = self._shape(moved).to(torch.float32, copy=True)
            yield self._normalise(shaped), labels.to(self._device, non_blocking=True)
