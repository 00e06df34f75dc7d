"""Torch's loader, whose processes may be killed."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from octnas.errors import DataError
from octnas.stopping import blocked

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
