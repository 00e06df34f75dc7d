"""Images per second: from files, from the cache, and through a training step."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, repeat
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
from torch import Tensor

from octnas.data.batches import TrainingBatches
from octnas.data.image_list import read_summary
from octnas.data.images import Data, open_images
from octnas.data.prepare import PROBLEMS_FILE, prepare_images
from octnas.data.settings import ImagesSettings
from octnas.device import cpu_threads
from octnas.errors import DataError, MeasureError, require
from octnas.measure.backends import check_device, sgd_step, wait
from octnas.measure.settings import TrainingBenchSettings
from octnas.measure.timing import Ratio, compare, interleave, spread
from octnas.nn.supernet import build
from octnas.runtime.progress import Progress
from octnas.space.architecture import Architecture

FILES, CACHE = "files", "cache"
STEP, STEP_FROM_FILES, STEP_FROM_CACHE = "step", "step from files", "step from cache"

# Factors for the number of batches in a turn, where it would otherwise be too short to time.
_TIMES = {CACHE: 8}


@dataclass(frozen=True, kw_only=True)
class DataBenchSettings(TrainingBenchSettings):
    """Length of a benchmark of the data.

    Attributes:
        batches: of one turn; many more than a loader's processes keep ready.
    """

    batches: int = 32
    repeats: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batches >= 1, "batches", self.batches, "1 or more")


@dataclass(frozen=True)
class DataRow:
    """One way of getting images.

    Attributes:
        what: ``files`` and ``cache`` are loaders alone; ``step`` is training on one batch
            repeatedly; ``step from …`` is training fed by a loader.
        images_per_second: median.
        spread: distance of the quartiles as a share of the median.
    """

    what: str
    images_per_second: float
    spread: float


@dataclass(frozen=True)
class DataBenchResult:
    """The results of a benchmark of the data.

    Attributes:
        speed_up: images per second of the cache over those of the files.
        held_back: time of a training step fed by the cache over that of the step alone.
    """

    settings: DataBenchSettings
    rows: tuple[DataRow, ...]
    speed_up: Ratio
    held_back: Ratio

    def to_dict(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        return {"schema": 1, **asdict(self)}


def bench_data(
    data: ImagesSettings,
    network: Callable[[int], Architecture],
    settings: DataBenchSettings,
    progress: Progress,
) -> DataBenchResult:
    """Time loaders and the training of a network, interleaved.

    Args:
        data: images; the cache is built if it is missing.
        network: to train, by the number of classes.
        settings: of the benchmark.
        progress: shows the cache being built.

    Raises:
        DataError: see `octnas.data.prepare.prepare_images`.
        MeasureError: fewer images than a batch, or images that only a cache can be made of.
    """
    check_device(settings.device)
    ways = _ways(data)
    # With any number of classes, so that mistakes are reported before images are read.
    input_size = network(1).input_size
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(settings.threads))
        folder = stack.enter_context(_folder())
        # Both ways use the same list.
        prepare_images(ways[CACHE], input_size, folder, progress)
        # Of the readable images.
        architecture = network(read_summary(folder).classes)
        loaders = {
            what: _train_batches(Data(way, folder), architecture, settings)
            for what, way in ways.items()
        }
        turns = _turns(loaders, architecture, settings)
        seconds = interleave(turns, settings.repeats, warm_up=1)
    seconds |= {what: seconds[what] / times for what, times in _TIMES.items()}
    images = settings.batch_size * settings.batches
    rows = tuple(
        DataRow(what, images / float(np.median(seconds[what])), spread(seconds[what]))
        for what in (FILES, CACHE, STEP, STEP_FROM_FILES, STEP_FROM_CACHE)
    )
    return DataBenchResult(
        settings,
        rows,
        compare(seconds[FILES], seconds[CACHE]),
        compare(seconds[STEP_FROM_CACHE], seconds[STEP]),
    )


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder, which is kept if an error refers to the list in it."""
    folder, stays = Path(mkdtemp(prefix="octnas-bench-")), False
    try:
        yield folder
    except DataError:
        stays = (folder / PROBLEMS_FILE).exists()
        raise
    finally:
        if not stays:
            rmtree(folder)


def _ways(data: ImagesSettings) -> dict[str, ImagesSettings]:
    """The settings of each way to get images."""
    if data.streamed:
        raise MeasureError(
            f"data.name: found {data.name!r}, whose images are read from end to end; allowed: "
            "images that a loader can read in any order, to compare the cache with"
        )
    return {
        what: replace(data, cache=replace(data.cache, enabled=what == CACHE))
        for what in (FILES, CACHE)
    }


def _train_batches(
    data: Data, architecture: Architecture, settings: DataBenchSettings
) -> TrainingBatches:
    images = open_images(data, architecture.input_size, settings.device)
    batches = images.train_batches(settings.batch_size, seed=0)
    if not len(batches):
        raise MeasureError(
            f"batch: found {settings.batch_size}, allowed: at most the {images.count('train')} "
            "training images"
        )
    return batches


def _turns(
    loaders: dict[str, TrainingBatches], architecture: Architecture, settings: DataBenchSettings
) -> dict[str, Callable[[], None]]:
    step = sgd_step(build(architecture, seed=0), settings.device, settings.precision)
    streams = {
        kind: chain.from_iterable(map(batches.epoch, count())) for kind, batches in loaders.items()
    }
    kept = next(streams[CACHE])

    def load(stream: Iterator[tuple[Tensor, Tensor]], times: int = 1) -> None:
        for _ in range(times * settings.batches):
            next(stream)
        wait(settings.device)

    def train(batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        for _ in range(settings.batches):
            step(*next(batches))

    # After its turn a loader of files decodes on until it has some batches ready. Training with
    # them follows, and leaves it with all of them; so it is quiet while the others are timed.
    return {
        CACHE: lambda: load(streams[CACHE], _TIMES[CACHE]),
        STEP_FROM_CACHE: lambda: train(streams[CACHE]),
        STEP: lambda: train(repeat(kept)),
        FILES: lambda: load(streams[FILES]),
        STEP_FROM_FILES: lambda: train(streams[FILES]),
    }
