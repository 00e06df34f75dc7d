"""How long steps and evaluations of an experiment take: the real ones, a few times each."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octnas.architecture import Architecture
from octnas.config import RunConfig
from octnas.costs import Budget
from octnas.device import cpu_threads
from octnas.measure.backends import wait
from octnas.measure.usage import memory_peak
from octnas.nn.calibration import recalibrate
from octnas.nn.supernet import activate, build, build_supernet
from octnas.pipeline.random_images import RandomImages
from octnas.space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.evaluate import evaluate
from octnas.training.loop import train
from octnas.training.settings import Recipe
from octnas.training.step import Step, plain
from octnas.training.supernet import train_supernet

# Before those that count: memory is allocated, kernels are chosen.
WARM_UP = 2


@dataclass(frozen=True)
class TrainingPace:
    """One step of a training.

    Attributes:
        seconds: of a step, on average.
        memory, gpu_memory: the most that it took, see `octnas.measure.usage.Usage`.
        weights: size of the weights, in bytes.
        checkpoint: size of one checkpoint, in bytes.
    """

    seconds: float
    memory: int
    gpu_memory: int
    weights: int
    checkpoint: int


@dataclass(frozen=True)
class EvaluationPace:
    """The evaluation of a candidate.

    Attributes:
        calibrate, score: seconds of one batch, medians.
        memory, gpu_memory: the most that it took.
    """

    calibrate: float
    score: float
    memory: int
    gpu_memory: int


def supernet_pace(
    config: RunConfig,
    space: SearchSpace,
    images: RandomImages,
    budgets: tuple[Budget, ...],
    device: torch.device,
    threads: int,
) -> TrainingPace:
    """Time steps of the experiment's supernet, with its sampling, batch and precision.

    Of several processes, one with its share of a batch; what they tell each other is left out.

    Args:
        config: the experiment.
        space: what is sampled from.
        images: how many steps, and with what.
        budgets: for sampling that learns.
        device: where to train.
        threads: of the CPU; 0 leaves it to torch.
    """
    settings = config.supernet
    # Weights to begin with do not change the time, but may have to be fetched.
    weights = settings.weights if settings.teacher == "original" else ""
    recipe = _short(settings.recipe, settings.recipe.batch_size // settings.workers)
    settings = replace(settings, recipe=recipe, weights=weights, workers=1, threads=threads)
    watch, scales = _Watch(device), _Scales()
    with memory_peak(device) as usage:
        model, _ = train_supernet(
            space,
            images,
            settings,
            seed=config.seed,
            device=device,
            checkpoints=scales,
            on_step=lambda _: watch.mark(),
            budgets=budgets,
        )
        watch.mark()
    return TrainingPace(
        watch.seconds, usage.memory, usage.gpu_memory, _size(model.state_dict()), scales.sizes[-1]
    )


def training_pace(
    config: RunConfig, architecture: Architecture, images: RandomImages, device: torch.device
) -> TrainingPace:
    """Time steps of a retraining of one architecture."""
    settings = config.retrain
    recipe = _short(settings.recipe, settings.recipe.batch_size)
    model, watch, scales = build(architecture, seed=0), _Watch(device), _Scales()

    def step(given: Step) -> Tensor:
        watch.mark()
        return plain(given)

    with memory_peak(device) as usage, cpu_threads(settings.threads):
        batches = images.train_batches(recipe.batch_size, 0)
        train(model, batches, recipe, device=device, backward=step, checkpoints=scales)
        watch.mark()
    return TrainingPace(
        watch.seconds, usage.memory, usage.gpu_memory, _size(model.state_dict()), scales.sizes[-1]
    )


def evaluation_pace(
    config: RunConfig,
    space: SearchSpace,
    alphas: Mapping[str, float],
    images: RandomImages,
    device: torch.device,
) -> EvaluationPace:
    """Time the two parts of a candidate's evaluation, a batch of each."""
    settings = config.search
    supernet = build_supernet(space, seed=0, by_role=config.supernet.by_role).to(device)
    activate(supernet, alphas)
    batches = [*images.batches("rank", settings.images_per_batch)]
    size = min(settings.images_per_batch, images.count("train"))
    training = [next(images.train_batches(size, 0).epoch(0))[0].to(device)]
    with memory_peak(device) as usage, cpu_threads(settings.threads):
        calibrate = _median(lambda: recalibrate(supernet, training), images.steps, device)
        score = _median(lambda: evaluate(supernet, batches, device), images.steps, device)
    return EvaluationPace(calibrate, score, usage.memory, usage.gpu_memory)


@dataclass
class _Watch:
    """When each step began, once the device had done what came before."""

    device: torch.device
    marks: list[float] = field(default_factory=list)

    def mark(self) -> None:
        wait(str(self.device))
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step: the mean, since the architectures of the steps differ."""
        return float(np.diff(self.marks)[WARM_UP:].mean())


@dataclass(frozen=True)
class _Scales(Checkpoints):
    """Weighs checkpoints; none is written or read."""

    folder: Path = Path()
    seconds: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def write(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Weigh it."""
        self.sizes.append(_size(state))

    def restore(self, target: Stateful) -> None:
        """There is nothing to go on from."""


def _short(recipe: Recipe, batch_size: int) -> Recipe:
    """One epoch of `RandomImages`."""
    return replace(recipe, epochs=1, warmup_epochs=0.0, batch_size=batch_size)


def _size(state: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


def _median(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    watch = _Watch(device)
    for _ in range(repeats):
        watch.mark()
        function()
    watch.mark()
    return float(np.median(np.diff(watch.marks)[WARM_UP:]))
