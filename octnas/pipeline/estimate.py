"""Hours, memory and disk of each stage: counted work times the measured time of one piece."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from octnas.config import RunConfig
from octnas.data.settings import ImagesSettings
from octnas.nn.rescale import FIT_ITERATIONS
from octnas.pipeline.pace import EvaluationPace, TrainingPace
from octnas.results.networks import PLAIN, RANDOM, VANILLA
from octnas.runtime.directory import CONVERT, ORIGINAL
from octnas.space.search_space import SearchSpace
from octnas.training.standalone import fitted_images

SCHEMA = 1
_HOUR = 3600.0
# Two that are kept and the one that is being written.
_CHECKPOINTS = 3
# Bytes of a trial in journal, outcomes and candidates, and of each site in it.
_TRIAL_BYTES, _SITE_BYTES = 3000, 250
_FLOAT = 4
# Forward passes that take as long as one with its backward pass, and as fitting kernels to an
# image, that is one with its backward pass per iteration.
_WITH_BACKWARD = 3
_FIT = _WITH_BACKWARD * (FIT_ITERATIONS + 1)


@dataclass(frozen=True)
class Machine:
    """The machine of a run: ``cpu`` or ``cuda``, the processor's or GPU's name, and CPU cores."""

    device: str
    name: str
    cores: int


@dataclass(frozen=True)
class ImageCounts:
    """The images of an experiment.

    Attributes:
        parts: number of images in train, search_val, read and val.
        counted: where these numbers come from.
        seconds: for one process to read and decode an image; 0 if unknown or not needed.
        cache: size of the cache in bytes; 0 without one.
    """

    parts: Mapping[str, int]
    classes: int
    counted: str
    seconds: float = 0.0
    cache: int = 0


@dataclass(frozen=True, kw_only=True)
class StageNeeds:
    """Estimated needs of a stage.

    Attributes:
        cpu_hours: core-hours; 0 for what is computed on a GPU.
        gpu_hours: of all its GPUs.
        memory: of all workers, in bytes.
        gpu_memory: of all workers that share a GPU, in bytes.
        disk: bytes that stay.
        scratch: further bytes while the stage is running.
        done: whether the stage is finished and only takes disk.
    """

    stage: str
    wall_hours: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    memory: int = 0
    gpu_memory: int = 0
    disk: int = 0
    scratch: int = 0
    done: bool = False


@dataclass(frozen=True)
class Plan:
    """An estimate of a whole run.

    Attributes:
        images, counted: see `ImageCounts`.
        measured: timings in seconds, by name.
        notes: what the estimate leaves out, a sentence each.
        original: the network that the run begins with, in words; empty without one.
    """

    name: str
    machine: Machine
    images: Mapping[str, int]
    counted: str
    stages: tuple[StageNeeds, ...]
    measured: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    original: str = ""

    @property
    def total(self) -> StageNeeds:
        """Sums of hours and disk; maxima of memory and scratch."""

        def over(combine: Callable[[Any], Any], *keys: str) -> dict[str, Any]:
            return {key: combine(getattr(stage, key) for stage in self.stages) for key in keys}

        return StageNeeds(
            stage="total",
            **over(sum, "wall_hours", "cpu_hours", "gpu_hours", "disk"),
            **over(max, "memory", "gpu_memory", "scratch"),
            **over(all, "done"),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"schema": SCHEMA, **asdict(self), "total": asdict(self.total)}


def needs(
    stage: str,
    machine: Machine,
    work: Sequence[tuple[int, float]],
    *,
    workers: int = 1,
    gpus: int = 1,
    threads: int = 1,
    memory: int = 0,
    gpu_memory: int = 0,
    disk: int = 0,
    scratch: int = 0,
) -> StageNeeds:
    """The needs of a stage.

    Workers that share a GPU are assumed to be no faster together than one after another.

    Args:
        stage, machine, disk, scratch: see `StageNeeds`.
        work: for each kind of work, how often it is done and its seconds.
        workers: processes that share it.
        gpus: over which they are spread.
        threads: CPU cores of one worker.
        memory, gpu_memory: of one worker, in bytes.
    """
    workers = max(1, min(workers, sum(count for count, _ in work)))
    hours = sum(count * seconds for count, seconds in work) / _HOUR
    on_gpu = machine.device != "cpu"
    threads = min(threads, machine.cores)
    parallel = gpus if on_gpu else min(workers, machine.cores / threads)
    return StageNeeds(
        stage=stage,
        wall_hours=hours / parallel,
        cpu_hours=0.0 if on_gpu else hours * threads,
        gpu_hours=hours if on_gpu else 0.0,
        memory=workers * memory,
        gpu_memory=ceil(workers / gpus) * gpu_memory if on_gpu else 0,
        disk=disk,
        scratch=scratch,
    )


def fed(step: float, images: int, image: float, loaders: int) -> float:
    """Seconds of a step that also waits for its images.

    Args:
        step: seconds of the step alone.
        images: of a step.
        image: seconds to decode one; 0 if they are in memory.
        loaders: processes that decode; 0 if the training process decodes between steps.
    """
    if loaders == 0:
        return step + images * image
    return max(step, images * image / loaders)


def interpolate(macs: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """Seconds at some MACs: linear between two (MACs, seconds), constant outside of them."""
    (low, fast), (high, slow) = sorted((first, second))
    if low == high:
        return max(fast, slow)
    share = min(1.0, max(0.0, (macs - low) / (high - low)))
    return fast + share * (slow - fast)


def supernet_threads(config: RunConfig, machine: Machine) -> int:
    """CPU threads of each process that trains the supernet; 0 for torch's default."""
    settings = config.supernet
    if settings.threads or settings.processes == 1:
        return settings.threads
    return max(1, machine.cores // settings.processes)


@dataclass(frozen=True)
class Measured:
    """Counts and timings of an experiment.

    Attributes:
        budgets: by name, in MACs.
        middle: MACs of the uniform network of the middle budget.
        supernet: None where none is trained.
        original: training of the network that the run begins with; None where it does not.
        vanilla, searched: retraining of the vanilla and of the middle network.
        evaluation: of the middle network.
    """

    config: RunConfig
    space: SearchSpace
    budgets: Mapping[str, int]
    images: ImageCounts
    machine: Machine
    middle: int
    supernet: TrainingPace | None
    original: TrainingPace | None
    vanilla: TrainingPace
    searched: TrainingPace
    evaluation: EvaluationPace

    @property
    def timed(self) -> dict[str, float]:
        """Seconds by name."""
        return {
            **({"original step": self.original.seconds} if self.original else {}),
            **({"supernet step": self.supernet.seconds} if self.supernet else {}),
            "candidate": self._candidate("search_val"),
            "vanilla step": self.vanilla.seconds,
            "mid-budget step": self.searched.seconds,
            "image": self.images.seconds,
        }

    def data_needs(self) -> StageNeeds:
        """Every image is decoded once, on the CPU."""
        images, data = self.images, self.config.data
        workers = max(1, data.workers) if isinstance(data, ImagesSettings) else 1
        work = [(sum(images.parts.values()), images.seconds)]
        machine = Machine("cpu", self.machine.name, self.machine.cores)
        return needs("data", machine, work, workers=workers, disk=images.cache)

    def all_needs(self) -> tuple[StageNeeds, ...]:
        """Of every stage that takes long, in order."""
        has_original = self.config.has_original
        return (
            self.data_needs(),
            *([self.original_needs(self.original)] if self.original else []),
            *([self.convert_needs()] if has_original else []),
            *([self.supernet_needs(self.supernet)] if self.supernet else []),
            self.search_needs(),
            self.retrain_needs(),
        )

    def original_needs(self, pace: TrainingPace) -> StageNeeds:
        """The vanilla network is trained once, and evaluated on read."""
        settings = self.config.original
        assert settings is not None
        recipe, processes = settings.recipe, settings.processes
        steps = self.images.parts["train"] // recipe.batch_size * recipe.epochs
        seconds = steps * self._fed(pace.seconds, recipe.batch_size)
        return needs(
            ORIGINAL,
            self.machine,
            [(1, seconds + self.images.parts["read"] * self._image(self.space.vanilla_macs))],
            threads=processes * (settings.threads or self.machine.cores),
            memory=pace.memory,
            gpu_memory=pace.gpu_memory,
            disk=pace.weights,
            scratch=_CHECKPOINTS * pace.checkpoint,
        )

    def convert_needs(self) -> StageNeeds:
        """A backward pass for some training images, and an evaluation on read."""
        image, parts = self._image(self.space.vanilla_macs), self.images.parts
        sorted_by = min(self.config.convert.images or parts["train"], parts["train"])
        return needs(
            CONVERT,
            self.machine,
            [(sorted_by, _WITH_BACKWARD * image), (parts["read"], image)],
            threads=self.config.supernet.threads or self.machine.cores,
            memory=self.vanilla.memory,
            gpu_memory=self.vanilla.gpu_memory,
            disk=self.vanilla.weights,
        )

    def supernet_needs(self, pace: TrainingPace) -> StageNeeds:
        """Every process takes part in every step."""
        settings = self.config.supernet
        recipe, processes = settings.recipe, settings.processes
        steps = self.images.parts["train"] // recipe.batch_size * recipe.epochs
        learns = settings.sampling == "learnable"
        return needs(
            "supernet",
            self.machine,
            [(steps * processes, self._fed(pace.seconds, recipe.batch_size // processes))],
            workers=processes,
            gpus=processes,
            threads=supernet_threads(self.config, self.machine) or self.machine.cores,
            memory=pace.memory + (self._bytes("search_val") if learns else 0),
            gpu_memory=pace.gpu_memory,
            disk=pace.weights,
            scratch=_CHECKPOINTS * pace.checkpoint,
        )

    def search_needs(self) -> StageNeeds:
        """Candidates are scored on search_val, those chosen also on read; both stay in memory."""
        settings, pace, parts = self.config.search, self.evaluation, self.images.parts
        images = max(self._bytes("search_val"), self._bytes("read"))
        # Cached images are kept on the device.
        on_gpu = self.machine.device != "cpu" and self.images.cache > 0
        return needs(
            "search",
            self.machine,
            [
                (settings.trials, self._candidate("search_val")),
                (len(self.budgets), self._candidate("read")),
                (parts["search_val"] + parts["read"], self._image_seconds),
            ],
            workers=settings.workers if settings.executor == "ray" else 1,
            threads=settings.threads,
            memory=pace.memory + (0 if on_gpu else images),
            gpu_memory=pace.gpu_memory + (images if on_gpu else 0),
            disk=settings.trials * (_TRIAL_BYTES + _SITE_BYTES * len(self.space.searchable)),
        )

    def retrain_needs(self) -> StageNeeds:
        """Every network is trained with every seed; the vanilla one needs the most disk.

        The original, if any, is evaluated once, and octave networks are fitted to it.
        """
        settings, largest = self.config.retrain, self.vanilla
        seeds, each = len(settings.seeds), 1 + sum(one != VANILLA for one in settings.baselines)
        each += (settings.randoms - 1) * (RANDOM in settings.baselines)
        work = [(seeds * each, self._training(macs)) for macs in self.budgets.values()]
        if VANILLA in settings.baselines:
            work.append((seeds, self._training(self.space.vanilla_macs)))
        count = sum(trainings for trainings, _ in work)
        fitted, converted = 0, self.config.begins_with("retrain") and settings.weights != "supernet"
        if converted and settings.fit_images:
            octaves = each - sum(one in PLAIN for one in settings.baselines)
            images = fitted_images(settings, self.space.vanilla, self.images.parts["train"])
            read = images * self._image_seconds
            work += [
                (octaves, read + images * _FIT * self._scored * macs / self.middle)
                for macs in self.budgets.values()
            ]
            fitted = octaves * len(self.budgets)
        if self.config.has_original:
            work.append((1, self._evaluation()))
        workers = min(settings.workers, count)
        return needs(
            "retrain",
            self.machine,
            work,
            workers=workers,
            threads=settings.threads,
            memory=max(largest.memory, self.searched.memory),
            gpu_memory=max(largest.gpu_memory, self.searched.gpu_memory),
            disk=(count + fitted) * largest.weights,
            scratch=workers * _CHECKPOINTS * largest.checkpoint,
        )

    def _training(self, macs: int) -> float:
        """Seconds of one training and of its evaluation on val, at all test sizes."""
        recipe = self.config.retrain.recipe
        step = interpolate(
            macs,
            (self.space.vanilla_macs, self.vanilla.seconds),
            (self.middle, self.searched.seconds),
        )
        steps = self.images.parts["train"] // recipe.batch_size * recipe.epochs
        return steps * self._fed(step, recipe.batch_size) + self._evaluation()

    def _evaluation(self) -> float:
        """Seconds of an evaluation on val, at all test sizes."""
        data, side, image = self.config.data, max(self.space.input_size[1:]), 0.0
        for size in (side, *self.config.retrain.test_sizes):
            # Images larger than the cached ones are read from their files.
            read = isinstance(data, ImagesSettings) and not data.streamed and size > side
            image += self._scored * (size / side) ** 2
            image += self.images.seconds if read else self._image_seconds
        return self.images.parts["val"] * image

    @property
    def _scored(self) -> float:
        """Seconds of the middle network for an image that is in memory."""
        settings = self.config.search
        return self.evaluation.score / min(
            settings.images_per_batch, self.images.parts["search_val"]
        )

    def _image(self, macs: int) -> float:
        """Seconds of a network for an image, about."""
        return self._scored * macs / self.middle + self._image_seconds

    def _candidate(self, part: str) -> float:
        """Seconds to evaluate one candidate on a part that is in memory."""
        settings, pace = self.config.search, self.evaluation
        scored = ceil(self.images.parts[part] / settings.images_per_batch)
        taught = settings.steps * pace.lesson
        return taught + settings.calibration_batches * pace.calibrate + scored * pace.score

    def _fed(self, step: float, images: int) -> float:
        data = self.config.data
        loaders = data.workers if isinstance(data, ImagesSettings) else 0
        return fed(step, images, self._image_seconds, loaders)

    @property
    def _image_seconds(self) -> float:
        """Seconds to decode an image during training; 0 with a cache."""
        return 0.0 if self.images.cache else self.images.seconds

    def _bytes(self, part: str) -> int:
        """Size of a part in memory, in float32."""
        channels, height, width = self.space.input_size
        return self.images.parts[part] * channels * height * width * _FLOAT
