"""The four parts of a data set as batches: train, search_val, read and val."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from octnas.data.augment import BatchAugment, BatchMixup, Normalise
from octnas.data.batches import (
    WHOLE,
    Batch,
    Batches,
    Part,
    TrainingBatches,
    epoch_generator,
    spread,
)
from octnas.data.cache import Cache
from octnas.data.digits import MEAN, STD, DigitImages
from octnas.data.from_cache import CachedEvaluation, CachedImages, CachedTraining
from octnas.data.from_files import (
    INTERPOLATION,
    FileEvaluation,
    Files,
    FileTraining,
    transforms,
)
from octnas.data.image_list import PARTS, ImageList, read_images
from octnas.data.prepare import build_missing, cache_folder, cached_squares
from octnas.data.settings import DataSettings, DigitsSettings, ImagesSettings
from octnas.data.sources import open_reader
from octnas.errors import require


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

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """A part in its order, without augmentation.

        Args:
            part: ``"train"``, ``"search_val"``, ``"read"`` or ``"val"``.
            batch_size: images of a batch; the last may have fewer.
            most: so many images, evenly spread over the part; 0 for all. Others are not decoded.
        """
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
        return DigitImages(data.settings, input_size[-1])
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
        # Half a gigabyte for ImageNet; where images come from a cache only numbers of it are kept.
        found = read_images(folder)
        self.classes = found.classes
        self._squares = cached_squares(found, settings, max(input_size[1:]))
        cache = None
        if self._squares:
            cache = Cache(cache_folder(settings) / found.key, len(found.entries), found.resolution)
            build_missing(cache, found, settings)
        self._parts = {part: self._part(found, part, cache) for part in PARTS}

    def _part(self, found: ImageList, part: str, cache: Cache | None) -> "CachedImages | _Named":
        positions = found.positions(part)
        labels = [found.entries[position].label for position in positions]
        if cache is not None:
            return CachedImages(cache.pixels, positions, labels, self._device)
        return _Named([found.entries[position].name for position in positions], labels)

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
        images, settings = self._parts["train"], self._settings
        if isinstance(images, _Named):
            files = self._files(images, training=True)
            return FileTraining(files, settings.workers, batch_size, seed, part)
        size = self._input_size[1:]
        augment = BatchAugment(settings.augment, size, settings.mean, settings.std, self._device)
        return CachedTraining(
            images, augment, batch_size, seed, part, self._device, squares=self._squares
        )

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """See `Images.batches`."""
        images, settings = self._parts[part], self._settings
        if most:
            images = images.some(spread(len(images), most))
        if isinstance(images, _Named):
            files = self._files(images, training=False)
            return FileEvaluation(files, settings.workers, batch_size)
        normalise = Normalise(settings.mean, settings.std, self._device)
        size = self._input_size[1:]
        # What evaluation resizes images to before it crops, as timm does.
        resize = int(max(size) / settings.crop_pct)
        return CachedEvaluation(images, batch_size, resize, size, normalise, self._device)

    def count(self, part: str) -> int:
        """See `Images.count`."""
        return len(self._parts[part])

    def _files(self, images: "_Named", *, training: bool) -> Files:
        transform = transforms(self._settings, self._input_size)[0 if training else 1]
        return Files(images.names, images.labels, open_reader(self._settings), transform)


@dataclass(frozen=True)
class _Named:
    """Images of a part that are read by name."""

    names: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.names)

    def some(self, chosen: Sequence[int]) -> "_Named":
        """Those at some positions."""
        return _Named([self.names[i] for i in chosen], [self.labels[i] for i in chosen])


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
