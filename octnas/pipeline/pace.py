"""Timing of a few real steps and evaluations of an experiment, on random images."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octnas.config import RunConfig
from octnas.data.batches import WHOLE, Batch, Batches, Part, TrainingBatches
from octnas.data.decode import BrokenImageError
from octnas.data.settings import ImagesSettings
from octnas.data.sources import open_reader
from octnas.device import cpu_threads
from octnas.measure.backends import wait
from octnas.measure.timing import memory_peak
from octnas.nn.conv import to_channels_last
from octnas.nn.supernet import activate, build, build_supernet, recalibrate
from octnas.nn.weights import save_weights
from octnas.space.architecture import Architecture
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.loop import Backward, Step, distilled, frozen, plain, train
from octnas.training.scoring import evaluate
from octnas.training.settings import (
    FINE_TUNE_RECIPE,
    Recipe,
    RetrainSettings,
    SupernetSettings,
)
from octnas.training.supernet import train_supernet

# Untimed steps, in which memory is allocated and kernels are chosen.
WARM_UP = 2
# Images that are decoded to time it.
_SAMPLE = 16


@dataclass
class RandomImages:
    """Random images with random labels; see `octnas.data.images.Images`.

    Attributes:
        size: channels, height and width.
        steps: batches of a training epoch, all of them the same.
        counts: sizes of the parts; other than in training, a part has one batch only.
    """

    classes: tuple[str, ...]
    size: tuple[int, int, int]
    steps: int
    counts: Mapping[str, int]

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """See `octnas.data.images.Images.train_batches`."""
        return _Repeated(self._batch(batch_size // part.ranks, seed), self.steps)

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """See `octnas.data.images.Images.batches`."""
        return [self._batch(min(batch_size, most or batch_size, self.count(part)), 0)]

    def count(self, part: str) -> int:
        """See `octnas.data.images.Images.count`."""
        return self.counts[part]

    def _batch(self, count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, *self.size, generator=generator)
        return images, torch.randint(len(self.classes), (count,), generator=generator)


@dataclass(frozen=True)
class _Repeated:
    batch: Batch
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        """The same batch at every step."""
        for _ in range(start, self.steps):
            yield self.batch


@dataclass(frozen=True)
class TrainingPace:
    """One step of a training.

    Attributes:
        seconds: mean of a step.
        memory, gpu_memory: peak, see `octnas.measure.timing.Usage`.
        weights, checkpoint: size in bytes.
    """

    seconds: float
    memory: int
    gpu_memory: int
    weights: int
    checkpoint: int


@dataclass(frozen=True)
class EvaluationPace:
    """The evaluation of a candidate: seconds of one batch, and peak memory in bytes.

    ``lesson`` is one of the steps that it is taught before; 0 where there are none.
    """

    calibrate: float
    score: float
    lesson: float
    memory: int
    gpu_memory: int


@dataclass
class _Watch:
    """Times at which steps begin, once the device has finished the previous ones."""

    device: torch.device
    marks: list[float] = field(default_factory=list)

    def mark(self) -> None:
        wait(str(self.device))
        self.marks.append(time.perf_counter())

    def seconds(self) -> np.ndarray:
        """Of every step after the warm-up."""
        self.mark()
        return np.diff(self.marks)[WARM_UP:]


@dataclass(frozen=True)
class _Weighed(Checkpoints):
    """Measures the size of checkpoints; none is written or read."""

    folder: Path = Path()
    seconds: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def write(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        self.sizes.append(_size(state))

    def restore(self, target: Stateful) -> None:
        pass


def _size(state: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


def supernet_pace(
    config: RunConfig,
    space: SearchSpace,
    images: RandomImages,
    budgets: tuple[Budget, ...],
    device: torch.device,
    threads: int,
) -> TrainingPace:
    """Time steps of the experiment's supernet.

    With several processes, one of them with its share of a batch, without communication.

    Args:
        config, space, budgets: of the experiment.
        images: how many steps, and of which size.
        device: where to train.
        threads: of the CPU; 0 for torch's default.
    """
    settings = config.supernet
    settings = replace(
        settings,
        recipe=_one_epoch(settings.recipe, settings.recipe.batch_size // settings.processes),
        # Initial weights do not change the time, but may have to be downloaded.
        weights=settings.weights if config.teacher == "original" else "",
        teacher=config.teacher,  # type: ignore[arg-type]
        processes=1,
        threads=threads,
    )

    def run(watch: _Watch, checkpoints: Checkpoints) -> nn.Module:
        if config.has_original and settings.teacher == "original":
            with TemporaryDirectory() as folder:
                # The original's, which are not there yet.
                path = Path(folder) / "weights.safetensors"
                save_weights(build(space.vanilla, seed=0), path)
                return trained(replace(settings, weights=str(path)), watch, checkpoints)
        return trained(settings, watch, checkpoints)

    def trained(settings: SupernetSettings, watch: _Watch, checkpoints: Checkpoints) -> nn.Module:
        return train_supernet(
            space,
            images,
            settings,
            seed=config.seed,
            device=device,
            checkpoints=checkpoints,
            on_step=lambda _: watch.mark(),
            budgets=budgets,
            rescaled=config.rescales,
        )[0]

    return _training_pace(run, device)


def training_pace(
    settings: RetrainSettings,
    architecture: Architecture,
    images: RandomImages,
    device: torch.device,
    teacher: Architecture | None = None,
) -> TrainingPace:
    """Time steps of the training of one architecture, alone or taught by another one."""
    model, learn = build(architecture, seed=0), _backward(settings, teacher, device)
    recipe = _one_epoch(settings.recipe, settings.recipe.batch_size)
    batches = images.train_batches(recipe.batch_size, 0)

    def run(watch: _Watch, checkpoints: Checkpoints) -> nn.Module:
        def backward(step: Step) -> Tensor:
            watch.mark()
            return learn(step)

        with cpu_threads(settings.threads):
            train(model, batches, recipe, device=device, backward=backward, checkpoints=checkpoints)
        return model

    return _training_pace(run, device)


def _backward(
    settings: RetrainSettings, teacher: Architecture | None, device: torch.device
) -> Backward:
    if teacher is None or settings.distillation is None:
        return plain
    whole = build(teacher, seed=0)
    return distilled(frozen(whole, settings.recipe, device), settings.distillation)


def _training_pace(
    run: Callable[[_Watch, Checkpoints], nn.Module], device: torch.device
) -> TrainingPace:
    watch, checkpoints = _Watch(device), _Weighed()
    with memory_peak(device) as usage:
        model = run(watch, checkpoints)
        seconds = float(watch.seconds().mean())  # not the median: architectures differ
    weights, checkpoint = _size(model.state_dict()), checkpoints.sizes[-1]
    return TrainingPace(seconds, usage.memory, usage.gpu_memory, weights, checkpoint)


def _one_epoch(recipe: Recipe, batch_size: int) -> Recipe:
    return replace(recipe, epochs=1, warmup_epochs=0.0, batch_size=batch_size)


def evaluation_pace(
    config: RunConfig,
    space: SearchSpace,
    alphas: Mapping[str, float],
    images: RandomImages,
    device: torch.device,
) -> EvaluationPace:
    """Time calibration and scoring of a candidate, one batch each."""
    settings = config.search
    switchable = config.supernet.switchable and not config.scores_converted
    supernet = build_supernet(space, seed=0, switchable=switchable).to(device)
    if device.type == "cpu":
        to_channels_last(supernet)  # as for scores
    activate(supernet, alphas)
    scored = [*images.batches("search_val", settings.images_per_batch)]
    size = min(settings.images_per_batch, images.count("train"))
    training = [next(images.train_batches(size, 0).epoch(0))[0].to(device)]

    def median(function: Callable[[], object]) -> float:
        watch = _Watch(device)
        for _ in range(images.steps):
            watch.mark()
            function()
        return float(np.median(watch.seconds()))

    with memory_peak(device) as usage, cpu_threads(settings.threads):
        calibrate = median(lambda: recalibrate(supernet, training))
        score = median(lambda: evaluate(supernet, scored, device))
    lesson = _lesson_pace(config, space.architecture(alphas), images, device)
    memory, gpu_memory = (
        max(getattr(one, name) for one in (usage, lesson) if one is not None)
        for name in ("memory", "gpu_memory")
    )
    return EvaluationPace(calibrate, score, lesson.seconds if lesson else 0.0, memory, gpu_memory)


def _lesson_pace(
    config: RunConfig, architecture: Architecture, images: RandomImages, device: torch.device
) -> TrainingPace | None:
    """Time a step that a candidate is taught; the original's logits are there already."""
    settings = config.search
    if not settings.steps:
        return None
    recipe = replace(FINE_TUNE_RECIPE, batch_size=settings.images_per_batch)
    taught = RetrainSettings(threads=settings.threads, recipe=recipe, distillation=None)
    return training_pace(taught, architecture, images, device)


def decoding_pace(settings: ImagesSettings, names: Sequence[str]) -> float:
    """Median seconds to read and decode an image; 0 if none can be decoded alone."""
    reader, seconds = open_reader(settings), []
    for position in np.linspace(0, len(names) - 1, min(_SAMPLE, len(names))).astype(int):
        begin = time.perf_counter()
        try:
            reader.read(names[position])
        except BrokenImageError:  # for a stream of shards, every image
            continue
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)) if seconds else 0.0
