"""The four parts of a data set as batches: train, search_val, read and val."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from timm.data import create_transform

from octnas.data.augment import CROP_DRAWS, BatchMixup, Normalise, RandomCrop, Recolour
from octnas.data.batches import (
    WHOLE,
    Batch,
    Batches,
    Epoch,
    Part,
    Shape,
    StoredImages,
    TrainingBatches,
    epoch_generator,
    epoch_order,
    spread,
)
from octnas.data.cache import Cache, CachedImages
from octnas.data.digits import MEAN, STD, DigitImages
from octnas.data.from_files import FileImages
from octnas.data.image_list import PARTS, ImageList, read_images
from octnas.data.prepare import build_missing
from octnas.data.settings import DataSettings, DigitsSettings, ImagesSettings, cache_folder
from octnas.data.sources import open_reader
from octnas.errors import require

INTERPOLATION = "bilinear"


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
            part: the share of this rank.
        """
        ...

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """A part in its order, without augmentation.

        Args:
            part: ``"train"``, ``"search_val"``, ``"read"`` or ``"val"``.
            batch_size: images of a batch; the last may have fewer.
            most: maximum number of images, evenly spread over the part; 0 for all.
        """
        ...

    def count(self, part: str) -> int:
        """Images of a part."""
        ...


@dataclass(frozen=True)
class Data:
    """A prepared data set, with the folder of its image list; picklable for any process."""

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
        device: where images are augmented and normalised; digits stay on the CPU.

    Raises:
        DataError: images that cannot be found, or differ from those of the list.
    """
    if isinstance(data.settings, DigitsSettings):
        return DigitImages(data.settings, input_size[-1])
    return ListedImages(data.settings, data.folder, input_size, device)


class ListedImages:
    """Images of a list, from files or from a cache. See `Images`."""

    def __init__(
        self,
        settings: ImagesSettings,
        folder: Path,
        input_size: tuple[int, int, int],
        device: torch.device | str,
    ) -> None:
        self._settings, self._size, self._device = settings, input_size[1:], device
        self._normalise = Normalise(settings.mean, settings.std, device)
        # Half a gigabyte for ImageNet, which is not kept.
        found = read_images(folder)
        self.classes = found.classes
        cache = None
        # Images larger than those that the cache was made for come from the files; but shards have
        # an order that batches cannot follow.
        enough = max(self._size) <= found.side or settings.streamed
        if settings.cache.enabled and found.resolution and enough:
            cache = Cache(cache_folder(settings) / found.key, len(found.entries), found.resolution)
            build_missing(cache, found, settings)
        self._parts = {part: self._part(found, part, cache) for part in PARTS}

    def _part(self, found: ImageList, part: str, cache: Cache | None) -> StoredImages:
        positions = found.positions(part)
        labels = [found.entries[position].label for position in positions]
        if cache is not None:
            return CachedImages(cache.pixels, positions, labels)
        names = [found.entries[position].name for position in positions]
        return FileImages(names, labels, open_reader(self._settings), self._settings.workers)

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """See `Images.train_batches`."""
        part.check(batch_size)
        settings = self._settings.augment
        mixup = None
        if settings.mixup or settings.cutmix:
            pairs = batch_size // part.ranks % 2 == 0
            each = f" for each of the {part.ranks} processes" if part.ranks > 1 else ""
            allowed = f"an even number of images{each}, with mixup or cutmix"
            require(pairs, "batch_size", batch_size, allowed)
            mixup = BatchMixup(settings, len(self.classes))
        return AugmentedBatches(
            images=self._parts["train"],
            crop=RandomCrop(settings, self._size),
            recolour=Recolour(settings, self._settings.mean),
            normalise=self._normalise,
            mixup=mixup,
            batch_size=batch_size,
            seed=seed,
            part=part,
        )

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """See `Images.batches`."""
        images = self._parts[part]
        if most:
            images = images.some(spread(len(images), most))
        shape = CentreCrop(self._size, self._settings.crop_pct)
        return PlainBatches(images, shape, self._normalise, batch_size)

    def count(self, part: str) -> int:
        """See `Images.count`."""
        return len(self._parts[part])


@dataclass(frozen=True, kw_only=True)
class AugmentedBatches:
    """Training batches; shuffled and augmented differently in each epoch.

    The batch size is that of all ranks together.
    """

    images: StoredImages
    crop: RandomCrop
    recolour: Recolour
    normalise: Normalise
    mixup: BatchMixup | None
    batch_size: int
    seed: int
    part: Part

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """See `octnas.data.batches.TrainingBatches.epoch`."""
        order = epoch_order(len(self.images), self.batch_size, self.seed, number)
        asked = Epoch(order, CROP_DRAWS + self.recolour.draws, self.seed, number, self.part)
        mixing = epoch_generator(self.seed, number, 1)
        seeds = torch.randint(2**31, (len(self),), generator=mixing).tolist()
        for batch, (crops, labels) in enumerate(self._crops(asked, start), start):
            coloured = self.recolour(crops, asked[batch][1][:, CROP_DRAWS:])
            images, labels = self.normalise(coloured), self.normalise.moved(labels)
            if self.mixup is not None:
                images, labels = self.mixup(images, labels, seeds[batch])
            yield images, labels

    def _crops(self, asked: Epoch, start: int) -> Iterator[Batch]:
        """Cropped images ``(n, 3, H, W)`` uint8, on the device, with labels."""
        moved = self.normalise.moved
        if not isinstance(self.images, CachedImages):
            for crops, labels in self.images.shaped(asked, self.crop, start):
                yield moved(crops), labels
        elif self.normalise.device.type == "cpu":
            yield from self.images.prepared(asked, self.crop.batch, start)
        else:
            whole = self.images.prepared(asked, lambda pixels, _: pixels, start)
            for batch, (pixels, labels) in enumerate(whole, start):
                yield self.crop.batch(moved(pixels), asked[batch][1]), labels


@dataclass(frozen=True)
class PlainBatches:
    """A part in its order, without augmentation."""

    images: StoredImages
    shape: Shape
    normalise: Normalise
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = torch.arange(len(self.images)).split(self.batch_size)
        asked = [(some, torch.empty(len(some), 0)) for some in indices] if len(self) else []
        for pixels, labels in self.images.shaped(asked, self.shape):
            yield self.normalise(pixels), self.normalise.moved(labels)


class CentreCrop:
    """timm's preparation of an image for evaluation."""

    def __init__(self, size: tuple[int, int], crop_pct: float) -> None:
        self._transform = create_transform(
            (3, *size), crop_pct=crop_pct, interpolation=INTERPOLATION, use_prefetcher=True
        )

    def __call__(self, image: Image, _: object) -> np.ndarray:
        """``(3, *size)`` uint8 of an RGB image."""
        shaped: np.ndarray = self._transform(image)
        return shaped


def preparation(settings: DataSettings) -> dict[str, Any]:
    """How images are prepared for evaluation, in the terms of a timm pretrained config."""
    if isinstance(settings, DigitsSettings):
        return {"mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": INTERPOLATION}
    return {
        "mean": settings.mean,
        "std": settings.std,
        "crop_pct": settings.crop_pct,
        "interpolation": INTERPOLATION,
    }
