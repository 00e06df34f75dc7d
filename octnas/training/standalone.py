"""Training of single architectures: one after another, side by side, or by DDP."""

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
from octnas.device import choose_device, cpu_threads, device_errors
from octnas.errors import TrainingError
from octnas.io.files import read_json, remove_tree, write_bytes, write_json
from octnas.nn.cost import cost
from octnas.nn.rescale import fit_kernels, rescale_kernels
from octnas.nn.supernet import TrainedSupernet, build
from octnas.nn.weights import load_weights, save_weights
from octnas.results.networks import SeedResult
from octnas.results.validation_log import log_validation
from octnas.runtime.signals import Stopped, blocked, deferred, from_now_on, raising, stoppable
from octnas.space.architecture import Architecture
from octnas.training.checkpoint import Checkpoints
from octnas.training.distributed import (
    ALONE,
    Processes,
    ProgressWriter,
    exit_with_parent,
    joined,
    own_device,
    reported,
)
from octnas.training.loop import Backward, Log, distilled, frozen, no_log, plain, train
from octnas.training.scoring import evaluate
from octnas.training.settings import RetrainSettings

RESULT_FILE = "result.json"
WEIGHTS_FILE = "weights.safetensors"
PREDICTIONS_FILE = "judged.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"
# Of several processes, within the folder of their training.
TOGETHER_FOLDER = "together"
_HISTORY_FILE = "history.json"
# Most memory for outputs of the original that kernels are fitted to; all of it takes twice that.
_FIT_BYTES = 10**9
# Seconds between two checks of the processes, and for their last step and checkpoint.
_PAUSE, _END = 0.3, 20.0


def training_folder(stage: Path, identity: str, seed: int) -> Path:
    """The folder of one training of a stage, by the architecture's id."""
    return stage / identity / f"seed-{seed}"


def pruned_weights(folder: Path, architecture: Architecture) -> Path:
    """The file of the weights that a pruned network starts from."""
    return folder / f"{architecture.id}.safetensors"


@dataclass(frozen=True)
class Original:
    """The trained network that a run begins with, its channels sorted.

    Attributes:
        architecture: at α = 0.
        weights: file of its state dict.
        pruned: folder of what is left of them in pruned networks, see `pruned_weights`.
    """

    architecture: Architecture
    weights: Path
    pruned: Path | None = None

    def load(self) -> nn.Module:
        """The network."""
        model = build(self.architecture, seed=0)
        load_weights(model, self.weights)
        return model

    def weights_for(self, architecture: Architecture) -> Path | None:
        """The weights that another architecture can start from; None if they do not fit."""
        own = self.architecture
        same = own.backbone == architecture.backbone
        if same and own.backbone_args == architecture.backbone_args:
            return self.weights
        left = None if self.pruned is None else pruned_weights(self.pruned, architecture)
        return left if left is not None and left.exists() else None


@dataclass(frozen=True)
class Training:
    """One architecture to train with one seed.

    Attributes:
        architecture: what to train.
        seed: of initialisation, data order and augmentation.
        folder: where weights and result are written.
        part: of the data, on which the trained network is evaluated.
        validation_log: file that gets a line before every evaluation; None for no log.
        original: gives the initial weights and teaches; None to train from scratch.
        supernet: gives the initial weights instead, at the architecture's α.
    """

    architecture: Architecture
    seed: int
    folder: Path
    part: str = "val"
    validation_log: Path | None = None
    original: Original | None = None
    supernet: TrainedSupernet | None = None

    @property
    def result(self) -> SeedResult | None:
        """The result on disk; None while the training is unfinished."""
        path = self.folder / RESULT_FILE
        return read_json(path, SeedResult) if path.exists() else None

    def checkpoints(self, seconds: float = 0.0) -> Checkpoints:
        """The checkpoints that it resumes from."""
        return Checkpoints(self.folder / CHECKPOINTS_FOLDER, seconds)


OnEpoch = Callable[[Training, Mapping[str, float]], None]
"""Called with a row of a training's history after every epoch."""


def unfinished(trainings: Sequence[Training]) -> list[Training]:
    """Those without a result. Leftover checkpoints of the others are removed."""
    todo = []
    for training in trainings:
        if training.result is None:
            todo.append(training)
        else:
            training.checkpoints().remove()
    return todo


def train_all(
    trainings: Sequence[Training],
    data: Data,
    settings: RetrainSettings,
    device: str,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    """Run trainings in ``settings.workers`` processes, and yield each result as it is finished.

    ``on_epoch`` is called in this process.
    """
    if settings.workers > 1 and len(trainings) > 1:
        yield from _train_side_by_side(trainings, data, settings, device, on_epoch)
        return
    for training in trainings:
        yield training, train_one(training, data, settings, device, partial(on_epoch, training))


def train_one(
    training: Training,
    data: Data,
    settings: RetrainSettings,
    device: str,
    log: Log = no_log,
    watch: str = "",
) -> SeedResult:
    """Train one network, or resume it, and write its weights, predictions and result.

    The result is written last: a folder with a result is complete.

    ``log`` gets a row after every epoch. With ``watch``, a part of the data, the row includes the
    network's ``{watch}_top1``, except for epochs before a resumption.
    """
    place = choose_device(device)
    images = _images(training, data, settings, place)
    if settings.processes > 1:
        model, history = _fit_together(training, data, settings, device, log, watch)
    else:
        model, history = _fit(training, images, settings, place, log, watch)
    with cpu_threads(settings.threads):
        metrics = _evaluate(model, training, images, data, settings, place)
    metrics["seconds"] = history[-1]["seconds"]
    save_weights(model, training.folder / WEIGHTS_FILE)
    result = SeedResult(training.seed, metrics, history)
    write_json(training.folder / RESULT_FILE, result.to_dict())
    training.checkpoints().remove()
    return result


def evaluate_original(
    training: Training, data: Data, settings: RetrainSettings, device: str
) -> SeedResult:
    """Evaluate the network that a training would begin with, as it is.

    Predictions and result are written as by `train_one`, without a history and seconds.

    Raises:
        ArchitectureError: its weights are missing.
    """
    if training.result is not None:
        return training.result
    assert training.original is not None
    place = choose_device(device)
    model = training.original.load().to(place)
    images = _images(training, data, settings, place)
    with cpu_threads(settings.threads):
        metrics = _evaluate(model, training, images, data, settings, place)
    result = SeedResult(training.seed, metrics, ())
    write_json(training.folder / RESULT_FILE, result.to_dict())
    return result


def _images(
    training: Training, data: Data, settings: RetrainSettings, device: torch.device
) -> Images:
    """The images at the network's input size, with the augmentation of retraining."""
    if settings.augment is not None:
        data = replace(
            data,
            settings=replace(data.settings, augment=settings.augment),  # type: ignore[arg-type]
        )
    return open_images(data, training.architecture.input_size, device)


def _fit(
    training: Training,
    images: Images,
    settings: RetrainSettings,
    device: torch.device,
    log: Log,
    watch: str,
    processes: Processes = ALONE,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The trained network and its history."""
    begun = time.time()
    model = _initial(training)
    with cpu_threads(settings.threads), device_errors():
        fitting = _fit_to_original(model, training, images, settings, device, processes)
    backward: Backward = plain
    if training.original is not None and settings.distillation is not None:
        teacher = frozen(training.original.load(), settings.recipe, device)
        backward = distilled(teacher, settings.distillation)

    def watched(row: Mapping[str, float]) -> None:
        if watch and row["time"] > begun:
            found = evaluate(model, images.batches(watch, settings.recipe.batch_size * 4), device)
            row = {**row, f"{watch}_top1": found.metrics["top1"]}
        log(row)

    with cpu_threads(settings.threads):
        history = train(
            model,
            images.train_batches(settings.recipe.batch_size, training.seed, processes.part),
            settings.recipe,
            device=device,
            seed=training.seed,
            processes=processes,
            backward=backward,
            checkpoints=training.checkpoints(settings.recipe.checkpoint_seconds),
            log=watched if processes.first else None,
        )
    return model, [{**row, "seconds": row["seconds"] + fitting} for row in history]


def _initial(training: Training) -> nn.Module:
    """The network before its training, and before its kernels are fitted."""
    if training.supernet is not None and training.supernet.fits(training.architecture):
        return training.supernet.subnet(training.architecture)
    model, original = build(training.architecture, seed=training.seed), training.original
    weights = None if original is None else original.weights_for(training.architecture)
    if weights is not None:
        load_weights(model, weights)
        rescale_kernels(model)
    return model


def _fit_to_original(
    model: nn.Module,
    training: Training,
    images: Images,
    settings: RetrainSettings,
    device: torch.device,
    processes: Processes,
) -> float:
    """Fit the kernels of an octave network that begins with the original's, in place.

    Seeds share the kernels, and so does a training that is resumed. Returns the seconds it took.
    """
    architecture, original = training.architecture, training.original
    octaves = any(architecture.alphas.values()) and training.supernet is None
    if original is None or not (octaves and settings.fit_images):
        return 0.0
    path = training.folder.parent / f"fitted-{architecture.id}.safetensors"
    if path.exists():
        load_weights(model, path)
        return 0.0
    begun = time.perf_counter()
    count = fitted_images(settings, original.architecture, images.count("train"))
    shown = next(iter(images.batches("train", count, count)))[0]
    fit_kernels(model.to(device), original.load().to(device), shown.to(device))
    if processes.first:
        save_weights(model, path)
    return time.perf_counter() - begun


def fitted_images(settings: RetrainSettings, original: Architecture, there: int) -> int:
    """The number of images that kernels are fitted on, of those that are there."""
    # The original's outputs are kept.
    fits = _FIT_BYTES // cost(original).activation_bytes
    return min(settings.fit_images, max(1, fits), there)


def _evaluate(
    model: nn.Module,
    training: Training,
    images: Images,
    data: Data,
    settings: RetrainSettings,
    device: torch.device,
) -> dict[str, float]:
    """Metrics at each image size; predictions at the training's are written beside the weights."""
    part, batch_size = training.part, settings.recipe.batch_size * 4
    channels, _, own = training.architecture.input_size
    metrics: dict[str, float] = {}
    for size in (None, *settings.test_sizes):
        if training.validation_log is not None:
            log = training.validation_log
            log_validation(log, training.architecture, training.seed, size or own, "retrain")
        shown = images if size is None else open_images(data, (channels, size, size), device)
        found = evaluate(model, shown.batches(part, batch_size), device)
        if size is None:
            write_bytes(training.folder / PREDICTIONS_FILE, save(found.to_tensors()))
            metrics |= {f"{part}_{name}": value for name, value in found.metrics.items()}
        else:
            metrics[f"{part}_top1@{size}"] = found.metrics["top1"]
    return metrics


def _fit_together(
    training: Training,
    data: Data,
    settings: RetrainSettings,
    device: str,
    log: Log,
    watch: str,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """As `_fit`, by several processes (see `octnas.training.distributed`)."""
    folder = (training.folder / TOGETHER_FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # A new file for every attempt: dead processes have left their addresses in the old one.
    rendezvous = folder / f"rendezvous-{uuid.uuid4().hex}"
    work = partial(_fit_rank, training, data, settings, device, watch, folder)
    try:
        with reported(folder, log), raising():
            _wait(spawn(work, args=(str(rendezvous),), nprocs=settings.processes, join=False))
    except (ProcessRaisedException, ProcessExitedException) as error:
        reason = " ".join(str(error).strip().splitlines()[-1].split())
        raise TrainingError(
            f"a process of the training failed ({reason[:300]}); the same command resumes from "
            "the last checkpoint"
        ) from None
    finally:
        rendezvous.unlink(missing_ok=True)
    model = build(training.architecture, seed=training.seed)
    load_weights(model, folder / WEIGHTS_FILE)
    history = read_json(folder / _HISTORY_FILE, list[dict[str, float]])
    remove_tree(folder)
    return model.to(choose_device(device)), history


def _wait(context: ProcessContext) -> None:
    """Wait for all processes; after a signal, until they have written a checkpoint."""
    try:
        with deferred() as asked:
            while not asked():
                try:
                    if context.join(_PAUSE):
                        return
                except (ProcessRaisedException, ProcessExitedException):
                    # A terminal signals all processes of a command.
                    if not asked():
                        raise
    except KeyboardInterrupt:
        end = time.monotonic() + _END
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
        raise


def _fit_rank(
    training: Training,
    data: Data,
    settings: RetrainSettings,
    device: str,
    watch: str,
    folder: Path,
    rank: int,
    rendezvous: str,
) -> None:
    """One of several processes; rank 0 writes weights and history."""
    exit_with_parent()
    torch.set_num_threads(settings.threads)
    with (
        stoppable(leave=True),
        joined(device, rank=rank, processes=settings.processes, rendezvous=rendezvous) as together,
    ):
        place, log = own_device(device), ProgressWriter(folder).row
        images = _images(training, data, settings, place)
        model, history = _fit(training, images, settings, place, log, watch, together)
        if together.first:
            save_weights(model, folder / WEIGHTS_FILE)
            write_json(folder / _HISTORY_FILE, history)


Epochs = SimpleQueue[tuple[int, Mapping[str, float]]]
"""Index of a training, and a row of its history."""

_epochs: Epochs | None = None


def _train_side_by_side(
    trainings: Sequence[Training],
    data: Data,
    settings: RetrainSettings,
    device: str,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    # A forked process would inherit torch's threads and locks.
    context = multiprocessing.get_context("spawn")
    workers = min(settings.workers, len(trainings))
    epochs: Epochs = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _begin_worker, (epochs,)) as pool:
        with blocked(signal.SIGINT):
            # Ctrl-C reaches every process of a terminal, even one that is still importing torch.
            futures = {
                pool.submit(_train_in_worker, index, training, data, settings, device): training
                for index, training in enumerate(trainings)
            }
        try:
            yield from _collect(futures, trainings, epochs, on_epoch)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a training process died (perhaps killed when out of memory); finished trainings "
                "are kept, and the same command resumes the others"
            ) from error
        except BaseException:
            # Otherwise the pool waits for all running trainings. Only the pool may join its
            # processes: if two threads join one, the second never sees its end.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(epochs: Epochs) -> None:
    """End silently with the parent process or by a signal."""
    exit_with_parent()
    from_now_on(leave=True)
    # A queue can only be passed to a process as it starts, not with a task.
    global _epochs
    _epochs = epochs


def _train_in_worker(
    index: int, training: Training, data: Data, settings: RetrainSettings, device: str
) -> SeedResult:
    """Train one network; its epochs go to the parent process."""

    def log(row: Mapping[str, float]) -> None:
        assert _epochs is not None
        _epochs.put((index, row))

    try:
        return train_one(training, data, settings, device, log)
    except Stopped as stopped:
        # Without an exception, which would wait for a lock that a dead process may hold.
        os._exit(128 + stopped.number)


def _collect(
    futures: Mapping[Future[SeedResult], Training],
    trainings: Sequence[Training],
    epochs: Epochs,
    on_epoch: OnEpoch,
) -> Iterator[tuple[Training, SeedResult]]:
    """Report epochs while trainings run, and yield results as they are finished."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        while not epochs.empty():
            index, row = epochs.get()
            on_epoch(trainings[index], row)
        for future in done:
            yield futures[future], future.result()
