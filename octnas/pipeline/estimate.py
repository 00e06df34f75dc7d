"""What each stage of a run does, counted, and how long one of it takes, as measured.

What a run will need: hours, memory and disk of its stages, by plain arithmetic.

A stage repeats a few kinds of work, each so many times. How long one of each takes is measured
elsewhere; here it is multiplied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from octnas.config import RunConfig
from octnas.data.settings import ImagesSettings
from octnas.pipeline.pace import EvaluationPace, ImageCounts, TrainingPace
from octnas.results.networks import RANDOM, VANILLA
from octnas.runtime.directory import RunDirectory
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from octnas.training.settings import Recipe, RetrainSettings

SCHEMA = 1
_HOUR = 3600.0


@dataclass(frozen=True)
class Machine:
    """Where a run takes place.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: of the processor or GPU, in words.
        cores: of its CPU.
    """

    device: str
    name: str
    cores: int


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        what: in words.
        count: how often it is done.
        seconds: that it takes once, by one worker.
    """

    what: str
    count: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """What a stage does, and with what.

    Attributes:
        stage: its name.
        on: ``cpu`` or ``cuda``.
        work: all of it.
        workers: processes that share it.
        gpus: over which those are spread, on ``cuda``.
        threads: CPU cores of one worker.
        memory: of one worker in main memory, in bytes.
        gpu_memory: of one worker on its GPU, in bytes.
        disk: bytes that stay.
        scratch: bytes beside those while it works.
        done: whether it is finished; then nothing is to be done, but the disk is taken.
    """

    stage: str
    on: str
    work: tuple[Work, ...]
    workers: int = 1
    gpus: int = 1
    threads: int = 1
    memory: int = 0
    gpu_memory: int = 0
    disk: int = 0
    scratch: int = 0
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class StageNeeds:
    """What a stage will need; see `StageWork` for the bytes.

    Attributes:
        stage: its name.
        wall_hours: from its beginning to its end.
        cpu_hours: core-hours of the CPU; 0 for what is computed on a GPU.
        gpu_hours: of all its GPUs.
        memory, gpu_memory: of all workers, and of all that share a GPU, in bytes.
        disk, scratch: bytes.
        done: whether it is finished.
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
        name: of the experiment.
        machine: that was measured.
        images: of each part.
        counted: where these numbers come from, in words.
        stages: in the order of the run.
        measured: seconds of what was timed, by name.
        notes: what the estimate leaves out, a sentence each.
    """

    name: str
    machine: Machine
    images: Mapping[str, int]
    counted: str
    stages: tuple[StageNeeds, ...]
    measured: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> StageNeeds:
        """Of all stages, one after another."""
        return total(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        return {"schema": SCHEMA, **asdict(self), "total": asdict(self.total)}


def needs(stage: StageWork, machine: Machine) -> StageNeeds:
    """What a stage needs on a machine.

    Workers on a CPU take turns where there are fewer cores than their threads together; workers
    that share a GPU are taken to be no faster together than one after another.
    """
    if stage.done:
        return StageNeeds(stage=stage.stage, disk=stage.disk, done=True)
    # No more workers than there is work for.
    workers = max(1, min(stage.workers, sum(one.count for one in stage.work)))
    busy = sum(one.count * one.seconds for one in stage.work)
    on_gpu = stage.on != "cpu"
    threads = min(stage.threads, machine.cores)
    side_by_side = stage.gpus if on_gpu else min(workers, machine.cores / threads)
    return StageNeeds(
        stage=stage.stage,
        wall_hours=busy / side_by_side / _HOUR,
        cpu_hours=0.0 if on_gpu else busy * threads / _HOUR,
        gpu_hours=busy / _HOUR if on_gpu else 0.0,
        memory=workers * stage.memory,
        gpu_memory=ceil(workers / stage.gpus) * stage.gpu_memory if on_gpu else 0,
        disk=stage.disk,
        scratch=stage.scratch,
    )


def total(stages: Sequence[StageNeeds]) -> StageNeeds:
    """Of stages that follow each other: hours and disk add up, memory and scratch are the most."""
    return StageNeeds(
        stage="total",
        wall_hours=sum(stage.wall_hours for stage in stages),
        cpu_hours=sum(stage.cpu_hours for stage in stages),
        gpu_hours=sum(stage.gpu_hours for stage in stages),
        memory=max(stage.memory for stage in stages),
        gpu_memory=max(stage.gpu_memory for stage in stages),
        disk=sum(stage.disk for stage in stages),
        scratch=max(stage.scratch for stage in stages),
        done=all(stage.done for stage in stages),
    )


def training_steps(images: int, batch_size: int, epochs: int) -> int:
    """Steps of a training that leaves out the last incomplete batch of every epoch."""
    return images // batch_size * epochs


def batches(images: int, batch_size: int) -> int:
    """Batches of a part, the last incomplete one included."""
    return ceil(images / batch_size)


def fed(step: float, images: int, image: float, loaders: int) -> float:
    """Seconds of a step that also waits for its images.

    Args:
        step: seconds of the step alone.
        images: of a step.
        image: seconds in which one process decodes one; 0 if they lie decoded in memory.
        loaders: processes that decode; 0 for the training's own, which decodes in between.
    """
    if loaders == 0:
        return step + images * image
    return max(step, images * image / loaders)


def between(macs: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """Seconds at some MACs, on the line between two measurements and level outside of it.

    Args:
        macs: of the network in question.
        first, second: MACs and seconds of those that were measured.
    """
    (low, fast), (high, slow) = sorted((first, second))
    if low == high:
        return max(fast, slow)
    share = min(1.0, max(0.0, (macs - low) / (high - low)))
    return fast + share * (slow - fast)


# The two that are kept and the one that is being written.
_CHECKPOINTS = 3
# Of the journal, the outcomes and the candidates; so much, and so much for each site.
_TRIAL_BYTES, _SITE_BYTES = 3000, 250
_FLOAT = 4


@dataclass(frozen=True)
class Measured:
    """An experiment, and all that was counted and timed of it.

    Attributes:
        config: the experiment.
        directory: of the run, for what is finished in it.
        space: the search space.
        budgets: in MACs.
        images: how many there are.
        machine: where it was timed.
        middle: MACs of the network of a middle budget.
        supernet: a step of the supernet.
        vanilla, searched: a retraining step of the vanilla network and of that in the middle.
        evaluation: the evaluation of that in the middle.
    """

    config: RunConfig
    directory: RunDirectory
    space: SearchSpace
    budgets: tuple[Budget, ...]
    images: ImageCounts
    machine: Machine
    middle: int
    supernet: TrainingPace
    vanilla: TrainingPace
    searched: TrainingPace
    evaluation: EvaluationPace


def supernet_threads(config: RunConfig, machine: Machine) -> int:
    """Of each process that trains the supernet; 0 for torch's own choice."""
    settings = config.supernet
    if settings.threads or settings.processes == 1:
        return settings.threads
    return max(1, machine.cores // settings.processes)


def data_work(measured: Measured) -> StageWork:
    """Every image is decoded once."""
    images, data = measured.images, measured.config.data
    workers = max(1, data.workers) if isinstance(data, ImagesSettings) else 1
    return StageWork(
        stage="data",
        on="cpu",
        work=(Work("images", sum(images.parts.values()), images.seconds),),
        workers=workers,
        disk=images.cache,
        done=images.looked,
    )


def supernet_work(measured: Measured) -> StageWork:
    """Steps; every process takes part in each."""
    settings, pace = measured.config.supernet, measured.supernet
    recipe, machine = settings.recipe, measured.machine
    steps = training_steps(measured.images.parts["train"], recipe.batch_size, recipe.epochs)
    seconds = _fed(measured, pace.seconds, recipe.batch_size // settings.processes)
    learns = settings.sampling == "learnable"
    return StageWork(
        stage="supernet",
        on=machine.device,
        work=(Work("steps", steps * settings.processes, seconds),),
        workers=settings.processes,
        gpus=settings.processes,
        threads=supernet_threads(measured.config, machine) or machine.cores,
        memory=pace.memory + (_held(measured, "search_val") if learns else 0),
        gpu_memory=pace.gpu_memory,
        disk=pace.weights,
        scratch=_CHECKPOINTS * pace.checkpoint,
        done=measured.directory.finished("supernet") is not None,
    )


def search_work(measured: Measured) -> StageWork:
    """Evaluations of candidates on search_val, and of the chosen ones on read."""
    settings, pace, parts = measured.config.search, measured.evaluation, measured.images.parts
    held = max(_held(measured, "search_val"), _held(measured, "read"))
    # Cached images lie on the device that scores them.
    on_gpu = measured.machine.device != "cpu" and measured.images.cache > 0
    return StageWork(
        stage="search",
        on=measured.machine.device,
        work=(
            Work("candidates", settings.trials, _evaluation(measured, "search_val")),
            Work("chosen ones", len(measured.budgets), _evaluation(measured, "read")),
            Work("images", parts["search_val"] + parts["read"], _image_seconds(measured)),
        ),
        workers=settings.workers if settings.executor == "ray" else 1,
        threads=settings.threads,
        memory=pace.memory + (0 if on_gpu else held),
        gpu_memory=pace.gpu_memory + (held if on_gpu else 0),
        disk=settings.trials * (_TRIAL_BYTES + _SITE_BYTES * len(measured.space.searchable)),
        done=measured.directory.finished("search") is not None,
    )


def retrain_work(measured: Measured) -> StageWork:
    """A training of every network with every seed."""
    settings = measured.config.retrain
    seeds, others = len(settings.seeds), sum(one != VANILLA for one in settings.baselines)
    others += (settings.randoms - 1) * (RANDOM in settings.baselines)

    def training(macs: int) -> float:
        return _training(measured, macs, settings.recipe, "val") + _other_sizes(measured)

    work = [
        Work(f"trainings, {budget.name}", seeds * (1 + others), training(budget.max_macs))
        for budget in measured.budgets
    ]
    if VANILLA in settings.baselines:
        vanilla = training(measured.space.vanilla_macs)
        work.append(Work(f"trainings, {VANILLA}", seeds, vanilla))
    return _trainings(measured, "retrain", settings, work)


def _other_sizes(measured: Measured) -> float:
    """Seconds of the looks at val at other test sizes, behind one training."""
    data, side = measured.config.data, max(measured.space.input_size[1:])
    decoded = isinstance(data, ImagesSettings) and not data.streamed
    seconds = 0.0
    for size in measured.config.retrain.test_sizes:
        # Larger images than its own come from the files even where there is a cache.
        read = measured.images.seconds if decoded and size > side else _image_seconds(measured)
        seconds += _score(measured) * (size / side) ** 2 + read
    return seconds * measured.images.parts["val"]


def _score(measured: Measured) -> float:
    """Seconds of one image in evaluation."""
    batch = min(measured.config.search.images_per_batch, measured.images.parts["search_val"])
    return measured.evaluation.score / batch


def _trainings(
    measured: Measured, stage: str, settings: RetrainSettings, work: Sequence[Work]
) -> StageWork:
    """Stand-alone trainings, several at a time; each needs at most what vanilla's needs."""
    worst = measured.vanilla
    workers = min(settings.workers, sum(one.count for one in work))
    return StageWork(
        stage=stage,
        on=measured.machine.device,
        work=tuple(work),
        workers=workers,
        threads=settings.threads,
        memory=max(worst.memory, measured.searched.memory),
        gpu_memory=max(worst.gpu_memory, measured.searched.gpu_memory),
        disk=sum(one.count for one in work) * worst.weights,
        scratch=workers * _CHECKPOINTS * worst.checkpoint,
        done=measured.directory.finished(stage) is not None,
    )


def _training(measured: Measured, macs: int, recipe: Recipe, part: str) -> float:
    """Seconds of one training, and of the look at a part behind it.

    A step of another batch size is taken to be as much longer as it has more images.
    """
    parts, batch_size = measured.images.parts, measured.config.retrain.recipe.batch_size
    step = between(
        macs,
        (measured.space.vanilla_macs, measured.vanilla.seconds),
        (measured.middle, measured.searched.seconds),
    )
    step = _fed(measured, step * recipe.batch_size / batch_size, recipe.batch_size)
    steps = training_steps(parts["train"], recipe.batch_size, recipe.epochs)
    return steps * step + parts[part] * (_score(measured) + _image_seconds(measured))


def _evaluation(measured: Measured, part: str) -> float:
    """Seconds of one candidate on a part that is held in memory."""
    settings, pace = measured.config.search, measured.evaluation
    scored = batches(measured.images.parts[part], settings.images_per_batch)
    return settings.calibration_batches * pace.calibrate + scored * pace.score


def _fed(measured: Measured, step: float, images: int) -> float:
    data = measured.config.data
    loaders = data.workers if isinstance(data, ImagesSettings) else 0
    return fed(step, images, _image_seconds(measured), loaders)


def _image_seconds(measured: Measured) -> float:
    """For which something that needs an image has to wait; none with a cache."""
    return 0.0 if measured.images.cache else measured.images.seconds


def _held(measured: Measured, part: str) -> int:
    """Bytes of a part that lies in memory in float32."""
    channels, height, width = measured.space.input_size
    return measured.images.parts[part] * channels * height * width * _FLOAT


def timed(measured: Measured) -> dict[str, float]:
    """What was timed, by name, in seconds."""
    return {
        "supernet step": measured.supernet.seconds,
        "candidate": _evaluation(measured, "search_val"),
        "vanilla step": measured.vanilla.seconds,
        "mid-budget step": measured.searched.seconds,
        "image": measured.images.seconds,
    }
