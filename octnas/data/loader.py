"""Torch's loader, whose processes may be killed."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from octnas.errors import DataError


def _ignore_signals(_: int) -> None:
    """A signal to a whole group of processes: the step that is at work needs its images still."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


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
        worker_init_fn=_ignore_signals,
        **settings,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise DataError(
            "a process that decodes images died (killed, perhaps for want of memory); what is "
            "there is kept, and the same command goes on; fewer data.workers need less"
        ) from error
