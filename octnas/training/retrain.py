"""Training of fixed architectures from scratch, one after another or side by side."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from octnas.architecture import Architecture
from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, cpu_threads
from octnas.errors import TrainingError
from octnas.nn.supernet import TrainedSupernet, build, subnet
from octnas.nn.weights import save_weights
from octnas.results import SeedResult
from octnas.run_directory import read_json, reading, write_bytes, write_json
from octnas.training.checkpoint import Checkpoints
from octnas.training.evaluate import judge
from octnas.training.loop import train
from octnas.training.retrain_settings import RetrainSettings
from octnas.training.settings import ProxySettings, RankingSettings

RESULT_FILE = "result.json"
WEIGHTS_FILE = "weights.safetensors"
JUDGED_FILE = "judged.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Training:
    """One network to train with one seed, and where its results go.

    Attributes:
        architecture: what to train.
        seed: of initialisation, data order and augmentation.
        folder: where weights and result are written.
        part: of the data, on which the trained network is judged.
        begin: the supernet whose weights it begins with; None to begin from scratch.
        looks: a file that gets a line before every look at that part; None for no such count.
    """

    architecture: Architecture
    seed: int
    folder: Path
    part: str = "val"
    begin: TrainedSupernet | None = None
    looks: Path | None = None

    @property
    def result(self) -> SeedResult | None:
        """What is on disk; None while the training is not finished."""
        path = self.folder / RESULT_FILE
        if not path.exists():
            return None
        with reading(path):
            return SeedResult.from_dict(read_json(path))

    def checkpoints(self, seconds: float = 0.0) -> Checkpoints:
        """From which it goes on if it was broken off."""
        return Checkpoints(self.folder / CHECKPOINTS_FOLDER, seconds)


Epochs = SimpleQueue[tuple[int, Mapping[str, float]]]
"""Number of a training, and what it logs after an epoch."""

_epochs: Epochs | None = None

Settings = RetrainSettings | RankingSettings | ProxySettings

OnEpoch = Callable[[Training, Mapping[str, float]], None]


def train_one(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    on_epoch: OnEpoch | None = None,
    watch: str = "",
) -> SeedResult:
    """Train one network and write its weights and result, going on if it was broken off.

    The result is written last: a folder with a result is complete.

    Args:
        training: what to train.
        data: on which.
        settings: recipe and threads.
        device: name of the device.
        on_epoch: called after every epoch.
        watch: a part of the data on which the network is tried after every epoch, before that
            call; empty for none. Epochs of an attempt that was broken off are not tried again.
    """
    begun = time.time()
    place = choose_device(device)
    if (augment := getattr(settings, "augment", None)) is not None:
        data = replace(data, settings=replace(data.settings, augment=augment))
    images = open_images(data, training.architecture.input_size, place)
    if training.begin is None:
        model = build(training.architecture, seed=training.seed)
    else:
        model = subnet(training.begin.load(), training.architecture)

    def log(row: Mapping[str, float]) -> None:
        if watch and row["time"] > begun:
            tried = judge(model, images.batches(watch, settings.recipe.batch_size * 4), place)
            row = {**row, f"{watch}_top1": tried.metrics["top1"]}
        if on_epoch is not None:
            on_epoch(training, row)

    with cpu_threads(settings.threads):
        history = train(
            model,
            images.train_batches(settings.recipe.batch_size, training.seed),
            settings.recipe,
            device=place,
            seed=training.seed,
            checkpoints=training.checkpoints(settings.recipe.checkpoint_seconds),
            log=log,
        )
        metrics = _judge(model, training, images, settings, data, place)
    metrics["seconds"] = history[-1]["seconds"]
    save_weights(model, training.folder / WEIGHTS_FILE)
    result = SeedResult(training.seed, metrics, history)
    write_json(training.folder / RESULT_FILE, result.to_dict())
    training.checkpoints().remove()
    return result


def _judge(
    model: nn.Module,
    training: Training,
    images: Images,
    settings: Settings,
    data: Data,
    device: torch.device,
) -> dict[str, float]:
    """Metrics on the training's part of the data, also of larger or smaller images.

    What the network makes of every image is written beside its weights.
    """
    part, batch_size = training.part, settings.recipe.batch_size * 4
    _note_look(training, training.architecture.input_size[-1])
    judged = judge(model, images.batches(part, batch_size), device)
    write_bytes(training.folder / JUDGED_FILE, save(judged.to_tensors()))
    metrics = {f"{part}_{name}": value for name, value in judged.metrics.items()}
    for size in getattr(settings, "test_sizes", ()):
        _note_look(training, size)
        shape = (training.architecture.input_size[0], size, size)
        other = judge(model, open_images(data, shape, device).batches(part, batch_size), device)
        metrics[f"{part}_top1@{size}"] = other.metrics["top1"]
    return metrics


def _note_look(training: Training, size: int) -> None:
    if training.looks is None:
        return
    look = {"architecture": training.architecture.id, "seed": training.seed, "size": size}
    training.looks.parent.mkdir(parents=True, exist_ok=True)
    with training.looks.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"part": training.part, **look}) + "\n")


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
            # Else the pool would wait until every running training has come to its end.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
                process.join()
            raise


def _begin_worker(epochs: Epochs) -> None:
    """End with the process that started this one, however that ends, and say nothing then."""
    # Ctrl-C reaches every process of a terminal; the first one says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
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

    return train_one(training, data, settings, device, on_epoch)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    # A killed parent cannot wait for anything, and results are written whole or not at all.
    os._exit(1)


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
