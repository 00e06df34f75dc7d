"""Training of the weight-sharing supernet, by one process or by several."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from octnas.data.images import Data, Images, open_images
from octnas.device import cpu_threads
from octnas.errors import require
from octnas.io.files import read_json, write_json
from octnas.nn.supernet import build_original, build_supernet
from octnas.nn.weights import save_weights
from octnas.runtime.signals import stoppable
from octnas.space.costs import Budget
from octnas.space.distribution import Probabilities
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints
from octnas.training.distributed import (
    ALONE,
    Processes,
    ProgressWriter,
    elastic_place,
    joined,
    own_device,
)
from octnas.training.learnable import LearnableSteps
from octnas.training.loop import Log, Step, Teacher, frozen, train
from octnas.training.sampled import architecture_draw, sampling_steps
from octnas.training.settings import SupernetSettings

RESULT_FILE = "together.json"


def train_supernet(
    space: SearchSpace,
    images: Images,
    settings: SupernetSettings,
    *,
    seed: int,
    device: torch.device,
    processes: Processes = ALONE,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    on_step: Callable[[int], None] | None = None,
    budgets: Sequence[Budget] = (),
    on_learned: Callable[[Mapping[str, Probabilities]], None] | None = None,
    rescaled: bool = False,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a supernet from its initial weights, or resume it from its last checkpoint.

    Args:
        space: to sample architectures from.
        images: of the training part; learnable sampling also uses search_val.
        settings: sampling and recipe.
        seed: of initialisation, data order and sampling.
        device: where to train.
        processes: that train together. Each trains its own architectures on its share of every
            batch, of equal MACs where the sampling draws these first.
        checkpoints: where to write and read them.
        log: called after every epoch.
        on_step: called with the number of every step before it is done.
        budgets: a distribution is learned for each, with ``sampling: learnable``.
        on_learned: called at the end with the learned probabilities, by name of the budget.
        rescaled: see `build_supernet`.

    Returns:
        The supernet, on ``device``, and its history by epoch.

    Raises:
        SettingError: see `check_supernet`.
    """
    _check_sites(space, settings)
    supernet = build_supernet(
        space,
        seed=seed,
        switchable=settings.switchable,
        weights=settings.weights,
        rescaled=rescaled,
    )
    rank = processes.part.rank
    batches = images.train_batches(settings.recipe.batch_size, seed, processes.part)
    total = settings.recipe.epochs * len(batches)
    learned = None
    if settings.sampling == "learnable":
        learned = LearnableSteps(
            supernet,
            space,
            budgets,
            images,
            settings.learnable,
            explore=architecture_draw(space, settings, seed, rank),
            seed=seed,
            steps=total,
        )
    steps = learned or sampling_steps(
        supernet,
        space,
        settings,
        seed=seed,
        steps=total,
        original=_original(space, settings, device),
        rank=rank,
    )

    def backward(step: Step) -> Tensor:
        if on_step is not None:
            on_step(step.number)
        return steps(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            batches,
            settings.recipe,
            device=device,
            seed=seed,
            processes=processes,
            backward=backward,
            state=learned,
            checkpoints=checkpoints,
            log=log,
        )
    if learned is not None and on_learned is not None:
        on_learned(learned.probabilities)
    return supernet, history


def check_supernet(space: SearchSpace, settings: SupernetSettings) -> None:
    """Check settings here, before several processes fail on them.

    Raises:
        SettingError: no architecture has MACs in the sampled range, the initial weights are
            missing or cannot teach, or there is nothing to learn.
    """
    _check_sites(space, settings)
    architecture_draw(space, settings, seed=0)
    if settings.weights:
        build_supernet(space, seed=0, switchable=settings.switchable, weights=settings.weights)
    _original(space, settings, torch.device("cpu"))


def _check_sites(space: SearchSpace, settings: SupernetSettings) -> None:
    learns = settings.sampling == "learnable"
    allowed = "another sampling, or a search space in which at least one site has two choices"
    require(not learns or bool(space.searchable), "sampling", settings.sampling, allowed)


def _original(
    space: SearchSpace, settings: SupernetSettings, device: torch.device
) -> Teacher | None:
    """The frozen network of the initial weights, if it is the teacher.

    Raises:
        SettingError: there are none, or see `octnas.nn.supernet.build_original`.
    """
    if settings.teacher != "original":
        return None
    require(bool(settings.weights), "teacher", settings.teacher, "original only with weights")
    return frozen(build_original(space, settings.weights), settings.recipe, device)


@dataclass(frozen=True)
class SupernetJob:
    """What each of several processes needs to train one supernet; picklable.

    Rank 0 writes the weights, the checkpoints, and progress and result into the folder.
    """

    space: SearchSpace
    budgets: tuple[Budget, ...]
    data: Data
    settings: SupernetSettings
    seed: int
    device: str
    weights: Path
    checkpoints: Checkpoints
    folder: Path
    rescaled: bool = False


@dataclass(frozen=True)
class Together:
    """The result of several processes: history by epoch, and learned distributions if any."""

    history: list[dict[str, float]]
    learned: Mapping[str, Probabilities] | None


def train_elastic_rank(job: SupernetJob) -> None:
    """One of several processes, under torch's elastic launcher."""
    with stoppable(leave=True):
        train_rank(job, *elastic_place(job.folder))


def train_rank(job: SupernetJob, rank: int, processes: int, rendezvous: str) -> None:
    """One of several processes; rank 0 writes weights, checkpoints, progress and result."""
    torch.set_num_threads(job.settings.threads or max(1, (os.cpu_count() or 1) // processes))
    with joined(job.device, rank=rank, processes=processes, rendezvous=rendezvous) as together:
        device = own_device(job.device)
        writer = ProgressWriter(job.folder) if together.first else None
        learned: dict[str, Probabilities] = {}
        supernet, history = train_supernet(
            job.space,
            open_images(job.data, job.space.input_size, device),
            job.settings,
            seed=job.seed,
            device=device,
            processes=together,
            checkpoints=job.checkpoints,
            log=writer.row if writer else None,
            on_step=writer.step if writer else None,
            budgets=job.budgets,
            on_learned=learned.update,
            rescaled=job.rescaled,
        )
        if together.first:
            save_weights(supernet, job.weights)
            result = {"history": history, "learned": learned or None}
            write_json(job.folder / RESULT_FILE, result)


def read_result(job: SupernetJob) -> Together:
    """The result that rank 0 has written."""
    return read_json(job.folder / RESULT_FILE, Together)
