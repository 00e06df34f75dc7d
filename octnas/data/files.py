"""Batches straight from image files, by timm's transforms in torch's loader."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from octnas.data.decode import BrokenImageError
from octnas.data.order import Part, epoch_orders
from octnas.data.seeding import seeded
from octnas.data.settings import ImagesSettings
from octnas.data.sources import Reader
from octnas.errors import DataError

INTERPOLATION = "bilinear"
Transform = Callable[[Image], Tensor]


def transforms(
    settings: ImagesSettings, input_size: tuple[int, int, int]
) -> tuple[Transform, Transform]:
    """timm's transforms for training and for evaluation."""
    augment = settings.augment
    common = {"interpolation": INTERPOLATION, "mean": settings.mean, "std": settings.std}
    operations = f"rand-m{augment.magnitude}-n{augment.rand_augment}"
    training = create_transform(
        input_size,
        is_training=True,
        scale=(augment.scale, 1.0),
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=operations if augment.rand_augment else None,
        **common,
    )
    return training, create_transform(input_size, crop_pct=settings.crop_pct, **common)


class Files(Dataset[tuple[Tensor, int]]):
    """A list of images with their labels.

    Args:
        names: as the reader knows them.
        labels: of the images.
        reader: opens them.
        transform: of each image.
    """

    def __init__(
        self, names: Sequence[str], labels: Sequence[int], reader: Reader, transform: Transform
    ) -> None:
        self._names, self._labels = names, labels
        self._reader, self._transform = reader, transform

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name = self._names[index]
        try:
            return self._transform(self._reader.read(name)), self._labels[index]
        except BrokenImageError as error:
            raise DataError(f"{name}: cannot be read any more ({error})") from error


class AugmentedFiles(Dataset[tuple[Tensor, int]]):
    """Training images: each is augmented by the seed that it is asked for with."""

    def __init__(self, images: Files) -> None:
        self._images = images

    def __getitem__(self, asked: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = asked
        with seeded(seed):
            return self._images[index]


class SeededShuffle(Sampler[list[tuple[int, int]]]):
    """Batches of indices, every index at most once per epoch, each with a seed of its own.

    So images do not depend on how many processes decode them, nor on the number of ranks.
    """

    def __init__(self, count: int, batch_size: int, seed: int, part: Part) -> None:
        self._batches, self._batch_size, self._part = count // batch_size, batch_size, part
        self._orders = epoch_orders(count, batch_size, seed)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, seeds = next(self._orders)
        pairs = torch.stack([order, seeds], dim=1)
        for batch in pairs.view(-1, self._batch_size, 2):
            yield [(index, seed) for index, seed in self._part.of(batch).tolist()]


class FileBatches:
    """A torch loader that is typed as batches."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], workers: int, **settings: Any) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Else a number is drawn from the global one in every epoch.
            generator=torch.Generator(),
            **settings,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self._loader
        except DataError as error:
            # Out of a loader's process it comes with its traceback as its text.
            last = str(error).strip().rsplit("\n", 1)[-1]
            raise DataError(last.removeprefix(f"{DataError.__module__}.DataError: ")) from error
