"""How long steps and evaluations of an experiment take: the real ones, a few times each.

Random images in the place of a data set, to time what is done with them.

How many images an experiment has, before and after its data stage has looked at them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octnas.config import RunConfig
from octnas.data.batches import WHOLE, Batch, Batches, Part, TrainingBatches
from octnas.data.decode import BrokenImageError
from octnas.data.digits import CLASSES
from octnas.data.image_list import PARTS, read_images, read_summary
from octnas.data.prepare import cache_resolution
from octnas.data.settings import DigitsSettings, ImagesSettings
from octnas.data.sources import list_images, open_reader
from octnas.data.splits import choose_subset
from octnas.device import cpu_threads
from octnas.errors import DataError
from octnas.measure.backends import wait
from octnas.measure.timing import memory_peak
from octnas.nn.supernet import activate, build, build_supernet, recalibrate
from octnas.pipeline.fingerprints import fingerprint
from octnas.runtime.directory import RunDirectory
from octnas.space.architecture import Architecture
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.loop import Step, plain, train
from octnas.training.scoring import evaluate
from octnas.training.settings import Recipe
from octnas.training.supernet import train_supernet


@dataclass
class RandomImages:
    """A few batches of random images with random labels; see `octnas.data.images.Images`.

    Attributes:
        classes: their names, by label.
        size: channels, height and width.
        steps: batches of an epoch.
        counts: images of each part, which ``count`` tells; only one batch of each is there.
    """

    classes: tuple[str, ...]
    size: tuple[int, int, int]
    steps: int
    counts: Mapping[str, int]

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> TrainingBatches:
        """The same batch at every step."""
        return _Repeated(self._batch(batch_size // part.ranks, seed), self.steps)

    def batches(self, part: str, batch_size: int, most: int = 0) -> Batches:
        """One batch, as large as the part allows."""
        return [self._batch(min(batch_size, most or batch_size, self.count(part)), 0)]

    def count(self, part: str) -> int:
        """Images that the part would have."""
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
        """Always the same."""
        for _ in range(start, self.steps):
            yield self.batch


# Before those that count: memory is allocated, kernels are chosen.
WARM_UP = 2


@dataclass(frozen=True)
class TrainingPace:
    """One step of a training.

    Attributes:
        seconds: of a step, on average.
        memory, gpu_memory: the most that it took, see `octnas.measure.timing.Usage`.
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
    recipe = _short(settings.recipe, settings.recipe.batch_size // settings.processes)
    settings = replace(settings, recipe=recipe, weights=weights, processes=1, threads=threads)
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
    supernet = build_supernet(space, seed=0, switchable=config.supernet.switchable).to(device)
    activate(supernet, alphas)
    batches = [*images.batches("search_val", settings.images_per_batch)]
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


_SAMPLE = 16


@dataclass(frozen=True)
class ImageCounts:
    """What is known of the images of an experiment.

    Attributes:
        parts: images of train, search_val, read and val.
        classes: how many.
        counted: where these numbers come from, in words.
        looked: whether the data stage is finished.
        seconds: in which one process reads and decodes an image; 0 if they are made in memory, or
            if this is not known.
        cache: size of the cache of decoded images, in bytes; 0 without one.
    """

    parts: Mapping[str, int]
    classes: int
    counted: str
    looked: bool
    seconds: float = 0.0
    cache: int = 0


def count_images(config: RunConfig, directory: RunDirectory) -> ImageCounts:
    """Count the images: as the data stage has found them, or by the settings, or by listing them.

    Raises:
        RunDirectoryError: the data stage was done with other settings.
        DataError: there is nothing to list.
    """
    data = config.data
    directory.check("data", fingerprint(config, "data"))
    looked = directory.finished("data") is not None
    if isinstance(data, DigitsSettings):
        parts = {part: int(getattr(data, f"{part}_images")) for part in PARTS}
        return ImageCounts(parts, len(CLASSES), "the settings", looked)
    size = config.space.input_size
    if looked:
        folder = directory.stage("data")
        found, about = read_images(folder), read_summary(folder)
        names = [entry.name for entry in found.entries if entry.part in PARTS]
        parts = {part: int(about["counts"][part]) for part in PARTS}
        words, classes, total = "the finished data stage", len(found.classes), len(found.entries)
    else:
        listing = choose_subset(list_images(data), data.subset, data.seed)
        names, classes = list(listing.names["train"]), len(listing.classes)
        parts = _cut(data, len(names), len(listing.names["val"]), classes)
        words, total = "a list of the files, none of which was looked at", sum(parts.values())
    return ImageCounts(
        parts, classes, words, looked, _seconds(data, names), _cache_size(data, size, total)
    )


def _cut(settings: ImagesSettings, training: int, val: int, classes: int) -> dict[str, int]:
    """The parts, if no image is a copy or broken.

    Raises:
        DataError: no training image is left.
    """
    search_val, read = settings.search_val_per_class * classes, settings.read_per_class * classes
    if training <= search_val + read:
        raise DataError(
            f"{settings.root}: found {training:,} training images, allowed: more than "
            f"{search_val + read:,}, which data.search_val_per_class and data.read_per_class take"
        )
    return {
        "train": training - search_val - read,
        "search_val": search_val,
        "read": read,
        "val": val,
    }


def _cache_size(settings: ImagesSettings, size: tuple[int, int, int], count: int) -> int:
    return count * 3 * cache_resolution(settings, size) ** 2


def _seconds(settings: ImagesSettings, names: Sequence[str]) -> float:
    """The median over a few images; the system may have them in memory."""
    reader, seconds = open_reader(settings), []
    for position in np.linspace(0, len(names) - 1, min(_SAMPLE, len(names))).astype(int):
        begin = time.perf_counter()
        try:
            reader.read(names[position])
        except BrokenImageError:
            # Or all of them, of shards that are read from end to end.
            continue
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)) if seconds else 0.0
