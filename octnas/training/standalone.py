"""The weights of one fixed architecture: what to train, and the training itself.

One network that several processes train together, each with its share of every batch.

Training of one fixed architecture, and what is kept of it.

Training of fixed architectures from scratch, one after another or side by side.
"""

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, cpu_threads
from octnas.errors import TrainingError
from octnas.io.files import read_as, remove_tree, write_bytes, write_json
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights, save_weights
from octnas.results.networks import SeedResult
from octnas.results.validation_log import log_validation
from octnas.runtime.directory import read_json, reading
from octnas.runtime.signals import Stopped, blocked, deferred, from_now_on, raising, stoppable
from octnas.space.architecture import Architecture
from octnas.training.checkpoint import Checkpoints
from octnas.training.distributed import ALONE, Ranks, exit_with_parent, joined
from octnas.training.loop import Log, train
from octnas.training.scoring import judge
from octnas.training.settings import RankingSettings, RetrainSettings
from octnas.training.supernet import PROGRESS_FILE, ProgressWriter, told

RESULT_FILE = "result.json"
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"

Settings = RetrainSettings | RankingSettings


def training_folder(stage: Path, identity: str, seed: int) -> Path:
    """Where a training is kept that its stage repeats with several seeds.

    Args:
        stage: the stage's folder.
        identity: of the architecture.
        seed: of the training.
    """
    return stage / identity / f"seed-{seed}"


@dataclass(frozen=True)
class Training:
    """One network to train with one seed, and where its results go.

    Attributes:
        architecture: what to train.
        seed: of initialisation, data order and augmentation.
        folder: where weights and result are written.
        part: of the data, on which the trained network is judged.
        looks: a file that gets a line before every look at that part; None for no such count.
    """

    architecture: Architecture
    seed: int
    folder: Path
    part: str = "val"
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


def fit(
    training: Training,
    images: Images,
    settings: Settings,
    device: torch.device,
    log: Log,
    *,
    watch: str = "",
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train one network, going on if it was broken off; the network and its history.

    Args:
        training: what to train.
        images: see `images_for`.
        settings: recipe and threads.
        device: where to train.
        log: called after every epoch.
        watch: a part of the data on which the network is tried after every epoch, before that
            call; empty for none. Epochs of an attempt that was broken off are not tried again.
        ranks: this process among those that train the same network.
    """
    begun = time.time()
    model = build(training.architecture, seed=training.seed)

    def tell(row: Mapping[str, float]) -> None:
        if watch and row["time"] > begun:
            tried = judge(model, images.batches(watch, settings.recipe.batch_size * 4), device)
            row = {**row, f"{watch}_top1": tried.metrics["top1"]}
        log(row)

    with cpu_threads(settings.threads):
        history = train(
            model,
            images.train_batches(settings.recipe.batch_size, training.seed, ranks.part),
            settings.recipe,
            device=device,
            seed=training.seed,
            ranks=ranks,
            checkpoints=training.checkpoints(settings.recipe.checkpoint_seconds),
            log=tell if ranks.first else None,
        )
    return model, history


def images_for(training: Training, data: Data, settings: Settings, device: torch.device) -> Images:
    """The images of a training, at its size and with its augmentation."""
    if (augment := getattr(settings, "augment", None)) is not None:
        data = replace(data, settings=replace(data.settings, augment=augment))
    return open_images(data, training.architecture.input_size, device)


FOLDER = "together"
_WEIGHTS, _HISTORY = "weights.safetensors", "history.json"
# Seconds between two looks at the ranks, and for their last step and checkpoint.
_LOOK, _END = 0.3, 20.0


def fit_together(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    log: Log,
    *,
    ranks: int,
    watch: str,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """As `octnas.training.standalone.fit`, by DistributedDataParallel.

    Gradients are averaged; batch norms are each process's own, and the result has those of rank 0
    (see `octnas.training.distributed`).

    Args:
        training, settings, log, watch: see `octnas.training.standalone.fit`.
        data: on which.
        device: name of the device.
        ranks: how many processes, each with a GPU of its own where there are any.

    Raises:
        TrainingError: one of them failed; the same call goes on from the last checkpoint.
    """
    folder = (training.folder / FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Another file for every attempt: what those that died have left in it misleads the next.
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    work = partial(_fit_rank, training, data, settings, device, watch, folder)
    try:
        with told(folder, log, lambda _: None), raising():
            _wait(spawn(work, args=(ranks, str(meeting)), nprocs=ranks, join=False))
    except (ProcessRaisedException, ProcessExitedException) as error:
        reason = " ".join(str(error).strip().splitlines()[-1].split())
        raise TrainingError(
            f"a process of the training failed ({reason[:300]}); the same command goes on from the "
            "last checkpoint"
        ) from None
    finally:
        meeting.unlink(missing_ok=True)
    model = build(training.architecture, seed=training.seed)
    load_weights(model, folder / _WEIGHTS)
    with reading(folder / _HISTORY):
        history = read_as(list[dict[str, float]], read_json(folder / _HISTORY))
    remove_tree(folder)
    return model.to(choose_device(device)), history


def _wait(ranks: ProcessContext) -> None:
    """Until all have come to their end; on a signal, until they have written a checkpoint."""
    try:
        with deferred() as asked:
            while not asked() and not _ended(ranks, asked):
                pass
    except KeyboardInterrupt:
        end = time.monotonic() + _END
        for process in ranks.processes:
            process.terminate()
        for process in ranks.processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
        raise


def _ended(ranks: ProcessContext, asked: Callable[[], int]) -> bool:
    """Whether all have come to their end, after a moment."""
    try:
        return bool(ranks.join(_LOOK))
    except (ProcessRaisedException, ProcessExitedException):
        # A terminal signals all processes of a command.
        if asked():
            return True
        raise


def _fit_rank(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    watch: str,
    folder: Path,
    rank: int,
    ranks: int,
    meeting: str,
) -> None:
    """One process; rank 0 writes what came of it."""
    exit_with_parent()
    torch.set_num_threads(settings.threads)
    with (
        stoppable(leave=True),
        joined(device, rank=rank, ranks=ranks, meeting=meeting) as together,
    ):
        place = choose_device(device)
        if place.type == "cuda":
            place = torch.device("cuda", torch.cuda.current_device())
        tell = ProgressWriter(folder / PROGRESS_FILE)
        images = images_for(training, data, settings, place)
        model, history = fit(
            training, images, settings, place, tell.row, watch=watch, ranks=together
        )
        if together.first:
            save_weights(model, folder / _WEIGHTS)
            write_json(folder / _HISTORY, history)


JUDGED_FILE = "judged.safetensors"

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
        settings: recipe, threads and, for retraining, the processes of one training.
        device: name of the device.
        on_epoch: called after every epoch.
        watch: see `octnas.training.standalone.fit`.
    """
    place, ranks = choose_device(device), getattr(settings, "processes", 1)
    images = images_for(training, data, settings, place)

    def log(row: Mapping[str, float]) -> None:
        if on_epoch is not None:
            on_epoch(training, row)

    if ranks > 1:
        model, history = fit_together(
            training, data, settings, device, log, ranks=ranks, watch=watch
        )
    else:
        model, history = fit(training, images, settings, place, log, watch=watch)
    with cpu_threads(settings.threads):
        metrics = _judge(model, training, images, data, settings, place)
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
    data: Data,
    settings: Settings,
    device: torch.device,
) -> dict[str, float]:
    """Metrics on the training's part of the data, also of larger or smaller images.

    What the network makes of every image is written beside its weights.
    """
    part, batch_size = training.part, settings.recipe.batch_size * 4
    architecture, looks = training.architecture, training.looks
    if looks is not None:
        log_validation(looks, architecture, training.seed, architecture.input_size[-1], "retrain")
    judged = judge(model, images.batches(part, batch_size), device)
    write_bytes(training.folder / JUDGED_FILE, save(judged.to_tensors()))
    metrics = {f"{part}_{name}": value for name, value in judged.metrics.items()}
    for size in getattr(settings, "test_sizes", ()):
        if looks is not None:
            log_validation(looks, architecture, training.seed, size, "retrain")
        shape = (architecture.input_size[0], size, size)
        other = judge(model, open_images(data, shape, device).batches(part, batch_size), device)
        metrics[f"{part}_top1@{size}"] = other.metrics["top1"]
    return metrics


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
