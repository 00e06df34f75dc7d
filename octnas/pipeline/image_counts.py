"""How many images an experiment has, before and after its data stage has looked at them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octnas.config import RunConfig
from octnas.data.choose import choose_subset
from octnas.data.decode import BrokenImageError
from octnas.data.digits import CLASSES
from octnas.data.image_list import PARTS, read_images, read_summary
from octnas.data.prepare import cache_resolution
from octnas.data.settings import DigitsSettings, ImagesSettings
from octnas.data.sources import list_images, open_reader
from octnas.errors import DataError
from octnas.pipeline.fingerprints import fingerprint
from octnas.run_directory import RunDirectory

_SAMPLE = 16


@dataclass(frozen=True)
class ImageCounts:
    """What is known of the images of an experiment.

    Attributes:
        parts: images of train, rank, read and val.
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
    rank, read = settings.rank_per_class * classes, settings.read_per_class * classes
    if training <= rank + read:
        raise DataError(
            f"{settings.root}: found {training:,} training images, allowed: more than "
            f"{rank + read:,}, which data.rank_per_class and data.read_per_class take"
        )
    return {"train": training - rank - read, "rank": rank, "read": read, "val": val}


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
