"""What a run will need: hours, memory and disk of its stages, by plain arithmetic.

A stage repeats a few kinds of work, each so many times. How long one of each takes is measured
elsewhere; here it is multiplied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

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
