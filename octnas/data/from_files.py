"""Images decoded by torch's loader, whose processes may be killed."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octnas.data.batches import Asked, Shape
from octnas.data.decode import BrokenImageError
from octnas.data.sources import Reader
from octnas.errors import DataError
from octnas.runtime.signals import blocked

# In torch's messages where /dev/shm is missing, too small, or kills the process that writes to it.
_NO_SHARED_MEMORY = ("shared memory", "unable to open shared", "torch_shm_manager", "Bus error")


def _obey_parent_only(_: int) -> None:
    """Ignore signals to the whole process group: the running step still needs its images."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM has been blocked since the process started. With it the parent stops its workers.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def load(dataset: Dataset[Any], workers: int, items: Sequence[int]) -> Iterator[Any]:
    """Iterate once over a data set, whose items are computed in other processes.

    Args:
        dataset: picklable.
        workers: processes; 0 for this one.
        items: to compute, in this order.

    Raises:
        DataError: a process died, or raised it.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        # Otherwise a number is drawn from the global generator.
        generator=torch.Generator(),
        worker_init_fn=_obey_parent_only,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        # No signal reaches a process before its handlers are set.
        with blocked():
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if any(sign in str(error) for sign in _NO_SHARED_MEMORY):
            raise DataError(
                "out of shared memory: /dev/shm is too small for the processes that decode images; "
                "set data.workers=0, or enlarge it (Docker: --shm-size=1g)"
            ) from error
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise DataError(
            "a process that decodes images died (out of memory?); the same command resumes, "
            "with fewer data.workers if memory is short"
        ) from error
    except DataError as error:
        # From another process it comes with its traceback as its text.
        last = str(error).strip().rsplit("\n", 1)[-1]
        raise DataError(last.removeprefix(f"{DataError.__module__}.DataError: ")) from error


@dataclass(frozen=True)
class FileImages:
    """Images that are decoded whenever they are needed, by worker processes if there are any."""

    names: Sequence[str]
    labels: Sequence[int]
    reader: Reader
    workers: int

    def __len__(self) -> int:
        return len(self.names)

    def some(self, chosen: Sequence[int]) -> "FileImages":
        """Those at some positions."""
        names, labels = [self.names[i] for i in chosen], [self.labels[i] for i in chosen]
        return replace(self, names=names, labels=labels)

    def shaped(self, asked: Asked, shape: Shape, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `octnas.data.batches.StoredImages`."""
        return load(_Shaped(self, asked, shape), self.workers, range(start, len(asked)))


@dataclass(frozen=True)
class _Shaped(Dataset[tuple[Tensor, Tensor]]):
    images: FileImages
    asked: Asked
    shape: Shape

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        indices, draws = self.asked[batch]
        pixels = [self._read(i, row) for i, row in zip(indices, draws.tolist(), strict=True)]
        labels = torch.tensor([self.images.labels[index] for index in indices])
        return torch.from_numpy(np.stack(pixels)), labels

    def _read(self, index: int, draws: Sequence[float]) -> np.ndarray:
        name = self.images.names[index]
        try:
            return self.shape(self.images.reader.read(name), draws)
        except BrokenImageError as error:
            raise DataError(f"{name}: cannot be read any more ({error})") from error
