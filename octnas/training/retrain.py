"""Training of fixed architectures from scratch, one after another or side by side."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue

from octnas.data.images import Data
from octnas.errors import TrainingError
from octnas.results import SeedResult
from octnas.stopping import Stopped, blocked, from_now_on
from octnas.training.fit import Settings, Training
from octnas.training.one import OnEpoch, train_one
from octnas.training.parent import exit_with_parent

Epochs = SimpleQueue[tuple[int, Mapping[str, float]]]
"""Number of a training, and what it logs after an epoch."""

_epochs: Epochs | None = None


def train_all(
    trainings: Sequence[Training],
    data: Data,
    settings: Settings,
    device: str,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    """Train what is not on disk yet; yields each result as it is finished.

    Args:
        trainings: what to train.
        data: each process opens it anew.
        settings: recipe, threads and the number of processes.
        device: name of the device.
        on_epoch: called in this process after every epoch of any training.
    """
    todo = [training for training in trainings if training.result is None]
    for training in trainings:
        if (found := training.result) is not None:
            training.checkpoints().remove()
            yield training, found
    if settings.workers == 1 or len(todo) == 1:
        for training in todo:
            yield training, train_one(training, data, settings, device, on_epoch)
    elif todo:
        yield from _train_in_processes(todo, data, settings, device, on_epoch)


def _train_in_processes(
    todo: Sequence[Training],
    data: Data,
    settings: Settings,
    device: str,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    # A forked process would inherit torch's threads and locks; a spawned one begins clean.
    context = multiprocessing.get_context("spawn")
    workers = min(settings.workers, len(todo))
    epochs: Epochs = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _begin_worker, (epochs,)) as pool:
        with blocked(signal.SIGINT):
            # Ctrl-C reaches every process of a terminal, also while it begins by importing torch.
            futures = {
                pool.submit(_train_in_worker, index, training, data, settings, device): training
                for index, training in enumerate(todo)
            }
        try:
            yield from _drain(futures, todo, epochs, on_epoch)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a training process died (killed, perhaps for want of memory); finished "
                "trainings are kept, and the same command goes on with the others"
            ) from error
        except BaseException:
            # Else the pool would wait until every running training has come to its end. It alone
            # waits for its processes: of two threads that do, one never learns that they ended.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(epochs: Epochs) -> None:
    """End with the process that started this one, however that ends, and say nothing then."""
    exit_with_parent()
    from_now_on(leave=True)
    # A queue can be handed to a process only as it starts, so it waits here for its trainings.
    global _epochs
    _epochs = epochs


def _train_in_worker(
    index: int, training: Training, data: Data, settings: Settings, device: str
) -> SeedResult:
    """Train one network and report its epochs to the process that started this one."""

    def on_epoch(_: Training, row: Mapping[str, float]) -> None:
        assert _epochs is not None
        _epochs.put((index, row))

    try:
        return train_one(training, data, settings, device, on_epoch)
    except Stopped as stopped:
        # Another one that has ended may hold the lock at which this one would wait for more work.
        os._exit(128 + stopped.number)


def _drain(
    futures: Mapping[Future[SeedResult], Training],
    todo: Sequence[Training],
    epochs: Epochs,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    """Pass epochs on as they come, and results as they are finished."""
    waiting = set(futures)
    while waiting:
        try:
            done = [next(as_completed(waiting, timeout=0.2))]
        except TimeoutError:
            done = []
        while not epochs.empty():
            index, row = epochs.get()
            on_epoch(todo[index], row)
        for future in done:
            waiting.discard(future)
            yield futures[future], future.result()
