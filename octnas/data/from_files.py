"""Batches straight from image files, by timm's transforms in torch's loader.

Torch's loader, whose processes may be killed.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octnas.data.batches import Batch, Part, epoch_order, seeded
from octnas.data.decode import BrokenImageError
from octnas.data.settings import ImagesSettings
from octnas.data.sources import Reader
from octnas.errors import DataError
from octnas.runtime.signals import blocked

# What torch says where /dev/shm is too small, is missing, or tears down who writes to it.
_NO_SHARED_MEMORY = ("shared memory", "unable to open shared", "torch_shm_manager", "Bus error")


def _heed_parent_alone(_: int) -> None:
    """A signal to a whole group of processes: the step that is at work needs its images still."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM is blocked since the process began. The parent ends with it what it has left behind,
    # and then waits.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def load(dataset: Dataset[Any], workers: int, **settings: Any) -> Iterator[Any]:
    """What a loader yields once.

    Args:
        dataset: picklable.
        workers: processes; 0 for this one.
        settings: of `torch.utils.data.DataLoader`.

    Raises:
        DataError: one of the processes died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=workers,
        # Else a number is drawn from the global one.
        generator=torch.Generator(),
        worker_init_fn=_heed_parent_alone,
        **settings,
    )
    try:
        # A process that begins hears no signal before it knows what to do at one.
        with blocked():
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if any(sign in str(error) for sign in _NO_SHARED_MEMORY):
            raise DataError(
                "the processes that decode images need shared memory, of which /dev/shm has too "
                "little here; set data.workers=0, or give more (Docker: --shm-size=1g)"
            ) from error
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise DataError(
            "a process that decodes images died (killed, perhaps for want of memory); what is "
            "there is kept, and the same command goes on; fewer data.workers need less"
        ) from error


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


class FileTraining:
    """Training batches; shuffled and augmented anew in each epoch.

    Images do not depend on how many processes decode them, nor on the number of ranks.

    Args:
        images: of the training part.
        workers: processes that decode; 0 for this one.
        batch_size: of all ranks together.
        seed: of order and augmentation.
        part: which share of every batch is this rank's.
    """

    def __init__(self, images: Files, workers: int, batch_size: int, seed: int, part: Part) -> None:
        self._images, self._workers = images, workers
        self._batch_size, self._seed, self._part = batch_size, seed, part

    def __len__(self) -> int:
        return len(self._images) // self._batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """See `octnas.data.batches.TrainingBatches.epoch`."""
        order, seeds = epoch_order(len(self._images), self._batch_size, self._seed, number)
        pairs = torch.stack([order, seeds], dim=2)[start:]
        chosen = [[(index, seed) for index, seed in self._part.of(b).tolist()] for b in pairs]
        return _load(AugmentedFiles(self._images), self._workers, batch_sampler=chosen)


class FileEvaluation:
    """A part in its order.

    Args:
        images: of the part.
        workers: processes that decode; 0 for this one.
        batch_size: images of a batch.
    """

    def __init__(self, images: Files, workers: int, batch_size: int) -> None:
        self._images, self._workers, self._batch_size = images, workers, batch_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _load(self._images, self._workers, batch_size=self._batch_size)


def _load(dataset: Dataset[tuple[Tensor, int]], workers: int, **settings: Any) -> Iterator[Batch]:
    """What torch's loader yields once."""
    pinned = torch.cuda.is_available()
    try:
        yield from load(dataset, workers, pin_memory=pinned, **settings)
    except DataError as error:
        # Out of a loader's process it comes with its traceback as its text.
        last = str(error).strip().rsplit("\n", 1)[-1]
        raise DataError(last.removeprefix(f"{DataError.__module__}.DataError: ")) from error
