"""Images in the ImageFolder layout, with timm's transforms."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import ImageFolder

from octnas.errors import DataError
from octnas.training.settings import FolderSettings

INTERPOLATION = "bilinear"


class FolderImages:
    """A training and a validation folder; rank and read parts are cut from the training folder.

    Raises:
        DataError: a folder is missing or empty, the two have different classes, or a class has
            too few images for the rank and read parts.
    """

    def __init__(self, settings: FolderSettings, input_size: tuple[int, int, int]) -> None:
        if input_size[0] != 3:
            raise DataError(f"space.input_size: found {input_size[0]} channels, allowed: 3")
        self._settings = settings
        train = _open(settings, settings.train)
        val = _open(settings, settings.val)
        if train.classes != val.classes:
            differing = sorted(set(train.classes) ^ set(val.classes))
            raise DataError(
                f"{settings.root}: classes differ between {settings.train} and {settings.val}: "
                + ", ".join(differing[:5])
            )
        self.classes = tuple(train.classes)
        self._files = {**_cut(train.samples, settings), "val": list(val.samples)}
        self._load: Callable[[str], Image] = train.loader
        self._train_transform = create_transform(
            input_size,
            is_training=True,
            scale=(settings.scale, 1.0),
            hflip=settings.hflip,
            color_jitter=None,
            interpolation=INTERPOLATION,
            mean=settings.mean,
            std=settings.std,
        )
        self._eval_transform = create_transform(
            input_size,
            crop_pct=settings.crop_pct,
            interpolation=INTERPOLATION,
            mean=settings.mean,
            std=settings.std,
        )

    def train_batches(self, batch_size: int, seed: int) -> "_Loader":
        """See `octnas.training.data.Images.train_batches`."""
        files = _Files(self._files["train"], self._load, self._train_transform)
        dataset = _Augmented(files)
        sampler = _SeededShuffle(len(files), torch.Generator().manual_seed(seed))
        return _Loader(
            dataset,
            self._settings.workers,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=True,
        )

    def batches(self, part: str, batch_size: int) -> "_Loader":
        """See `octnas.training.data.Images.batches`."""
        dataset = _Files(self._files[part], self._load, self._eval_transform)
        return _Loader(dataset, self._settings.workers, batch_size=batch_size)

    def count(self, part: str) -> int:
        """See `octnas.training.data.Images.count`."""
        return len(self._files[part])


class _Files(Dataset[tuple[Tensor, int]]):
    """A list of image files with their labels."""

    def __init__(
        self,
        files: list[tuple[str, int]],
        load: Callable[[str], Image],
        transform: Callable[[Image], Tensor],
    ) -> None:
        self._files, self._load, self._transform = files, load, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._files[index]
        try:
            return self._transform(self._load(path)), label
        except OSError as error:
            raise DataError(f"{path}: cannot be read as an image ({error})") from error


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Training images: each is augmented by the seed that it is asked for with."""

    def __init__(self, images: _Files) -> None:
        self._images = images

    def __getitem__(self, asked: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = asked
        # timm's transforms draw from the global generators, which are given back as they were.
        before = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                random.seed(seed)
                torch.manual_seed(seed)
                return self._images[index]
        finally:
            random.setstate(before)


class _SeededShuffle(Sampler[tuple[int, int]]):
    """Every index once per epoch, in a new order, with a seed for its augmentation.

    So images do not depend on how many processes decode them.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self._count, generator=self._generator)
        seeds = torch.randint(2**31, (self._count,), generator=self._generator)
        yield from zip(order.tolist(), seeds.tolist(), strict=True)


class _Loader:
    """A torch loader that is typed as batches."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], workers: int, **settings: Any) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            **settings,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._loader


def class_folders(settings: FolderSettings) -> list[str]:
    """The names of the classes: the folders below the training folder, sorted.

    Raises:
        DataError: the training folder cannot be found.
    """
    return sorted(
        entry.name for entry in _folder(settings, settings.train).iterdir() if entry.is_dir()
    )


def _folder(settings: FolderSettings, name: str) -> Path:
    folder = Path(settings.root) / name
    if not settings.root or not folder.is_dir():
        raise DataError(
            f"data.root: found {settings.root!r} without a folder {name!r}; "
            "set it to a folder in ImageFolder layout, such as --set data.root=PATH"
        )
    return folder


def _open(settings: FolderSettings, name: str) -> ImageFolder:
    folder = _folder(settings, name)
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {str(error).splitlines()[0]}") from None


def _cut(
    samples: list[tuple[str, int]], settings: FolderSettings
) -> dict[str, list[tuple[str, int]]]:
    """Cut the training images into train, rank and read, class by class."""
    by_class: dict[int, list[tuple[str, int]]] = {}
    for path, label in samples:
        by_class.setdefault(label, []).append((path, label))
    rng = random.Random(settings.seed)  # noqa: S311  not for secrets
    rank, read = settings.rank_per_class, settings.read_per_class
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "rank": [], "read": []}
    for files in by_class.values():
        if len(files) <= rank + read:
            raise DataError(
                f"{Path(files[0][0]).parent}: found {len(files)} images, allowed: more than "
                f"rank_per_class + read_per_class = {rank + read}"
            )
        shuffled = rng.sample(files, len(files))
        parts["rank"] += shuffled[:rank]
        parts["read"] += shuffled[rank : rank + read]
        parts["train"] += shuffled[rank + read :]
    return parts
