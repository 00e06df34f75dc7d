"""The data stage: decode every image once, fill the cache, assign images to the four parts."""

import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from octnas.data.cache import PIXELS_FILE, Cache, Found, ReadImage, gigabytes
from octnas.data.decode import BrokenImageError, pixel_digest, read_rgb
from octnas.data.digits import digest_of_digits
from octnas.data.from_files import load
from octnas.data.image_list import ABOUT_FILE, PARTS, ImageList, write_images
from octnas.data.image_list import SCHEMA as LIST_SCHEMA
from octnas.data.settings import DataSettings, DigitsSettings, ImagesSettings, cache_folder
from octnas.data.sources import (
    SPLITS,
    Problem,
    Reader,
    StreamReader,
    list_images,
    open_reader,
    stamp_shards,
)
from octnas.data.splits import broken_classes, choose_subset, sort_out
from octnas.errors import DataError, SettingError
from octnas.io.files import write_json, write_text
from octnas.runtime.progress import Progress, Quiet


def build(
    cache: Cache,
    names: Sequence[str],
    reader: Reader,
    *,
    workers: int,
    progress: Progress,
    digests: Sequence[str] = (),
) -> None:
    """Fill the missing shards of a cache; other processes may be doing the same.

    Args:
        cache: to fill.
        names: of all images, in the order of the cache.
        reader: opens them.
        workers: processes that decode; 0 for this one.
        progress: shows the shards.
        digests: expected, by position; an empty one accepts any image.

    Raises:
        DataError: the disk is full or too small, or an image has another digest.
    """
    if not (missing := cache.missing()):
        return
    cache.check_room()
    with progress.bar("data", cache.shards) as bar:
        bar.advance(cache.shards - len(missing))
        if isinstance(reader, StreamReader):
            for shard in _fill_from_stream(cache, names, reader, missing, digests):
                bar.advance(note=f"shard {shard}")
            return
        work = _Shards(cache, names, reader, digests)
        # In a random order, so that several processes seldom claim the same shard.
        random.Random(f"{os.uname().nodename} {os.getpid()}").shuffle(missing)  # noqa: S311
        while missing:
            own = 0
            free = [shard for shard in missing if cache.unclaimed(shard)]
            for filled in load(work, workers, free) if free else ():
                own += filled
                bar.advance(int(filled))
            before, missing = len(missing), cache.missing()
            bar.advance(before - len(missing) - own)
            if missing:
                # Others have claimed them.
                time.sleep(0.2)


def retry_broken(cache: Cache, names: Sequence[str], reader: Reader) -> list[Found]:
    """The results of a complete cache, after another attempt at images that could not be read."""
    found = cache.found()
    if isinstance(reader, StreamReader):
        return found
    changed = [
        position
        for position, one in enumerate(found)
        if one.reason and one.reason != _reason(reader, names[position])
    ]
    for shard in sorted({position // cache.shard_images for position in changed}):
        cache.fill(shard, lambda position: reader.read(names[position]))
    return cache.found() if changed else found


def _reason(reader: Reader, name: str) -> str:
    try:
        reader.read(name)
    except BrokenImageError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Shards(Dataset[bool]):
    """Fills a shard when it is indexed; False if another process does."""

    cache: Cache
    names: Sequence[str]
    reader: Reader
    digests: Sequence[str]

    def __getitem__(self, shard: int) -> bool:
        if not self.cache.claim(shard):
            return False

        def read(position: int) -> Image.Image:
            return self.reader.read(self.names[position])

        self.cache.fill(shard, _as_listed(read, self.names, self.digests))
        return True


def _fill_from_stream(
    cache: Cache,
    names: Sequence[str],
    reader: StreamReader,
    missing: Sequence[int],
    digests: Sequence[str],
) -> Iterator[int]:
    """Fill shards in order, without holding the images of a whole shard in memory."""
    stream = _named(names, reader)
    images = _as_listed(lambda _: read_rgb(next(stream)), names, digests)
    for shard in range(cache.shards):
        if shard in cache.missing():
            cache.fill(shard, images)
        else:
            for _ in cache.positions(shard):
                next(stream)
        if shard in missing:
            yield shard


def _as_listed(images: ReadImage, names: Sequence[str], digests: Sequence[str]) -> ReadImage:
    """The same images; those with another digest than the list's are refused."""
    if not digests:
        return images

    def checked(position: int) -> Image.Image:
        wanted, reason = digests[position], ""
        try:
            image = images(position)
        except BrokenImageError as error:
            if not wanted:
                raise
            reason = f" ({error})"
        else:
            if not wanted or pixel_digest(image) == wanted:
                return image
        raise DataError(
            f"{names[position]}: differs from the image that the experiment began with{reason}; "
            "restore it below data.root, or start over with --fresh data"
        )

    return checked


def _named(names: Sequence[str], reader: StreamReader) -> Iterator[Image.Image]:
    """The named images, in the order of the streams."""
    splits = dict.fromkeys(name.split("/")[0] for name in names)
    wanted = iter(names)
    name = next(wanted, None)
    for split in splits:
        for found, image in reader.stream(split):
            if found == name:
                yield image
                name = next(wanted, None)
    if name is not None:
        raise DataError(f"{name}: is no longer in the shards")


SCHEMA = 1
PROBLEMS_FILE = "problems.txt"
CHECKED_FOLDER = "checked"


def prepare_images(
    settings: DataSettings, input_size: tuple[int, int, int], folder: Path, progress: Progress
) -> None:
    """Decode every image once, and list which are used for which part.

    An interrupted preparation resumes.

    Args:
        settings: of the data.
        input_size: channels, height and width of the networks' images.
        folder: of the list.
        progress: bars and lines for the user.

    Raises:
        DataError: missing or unsuitable data, broken images (all of them listed in
            ``problems.txt``), or a disk that is too small for the cache.
        SettingError: a setting that does not fit the input size.
    """
    if isinstance(settings, DigitsSettings):
        counts = {part: getattr(settings, f"{part}_images") for part in PARTS}
        about = {"digest": digest_of_digits(settings), "classes": 10, "counts": counts}
        write_json(folder / ABOUT_FILE, {"schema": LIST_SCHEMA, **about, "problems": []})
        return
    if input_size[0] != 3:
        raise DataError(f"space.input_size: found {input_size[0]} channels, allowed: 3")
    found = list_images(settings)
    listing = choose_subset(found, settings.subset, settings.seed)
    names = [name for split in SPLITS for name in listing.names[split]]
    resolution = cache_resolution(settings, input_size)
    key = _key(settings, names, resolution)
    # Without a cache, only digests and reasons are kept, beside the list.
    where = cache_folder(settings) if resolution else folder / CHECKED_FOLDER
    cache = Cache(where / key, len(names), resolution)
    if cache.resolution:
        size = gigabytes(len(names) * cache.image_bytes)
        progress.say(
            f"data: {len(names):,} images at {cache.resolution}×{cache.resolution}: a cache of "
            f"{size} in {cache.folder}"
        )
    reader = open_reader(settings)
    build(cache, names, reader, workers=settings.workers, progress=progress)
    results = retry_broken(cache, names, reader)
    unusable = broken_classes(listing, results)
    problems = [*listing.problems, *unusable]
    for name, one in zip(names, results, strict=True):
        if one.reason:
            problems.append(Problem(name, one.reason))
    _report_problems(settings, problems, folder)
    classes, entries = sort_out(settings, listing, results, {one.name for one in unusable})
    write_images(
        ImageList(classes, entries, tuple(problems), key, resolution, max(input_size[1:])), folder
    )


def cache_resolution(settings: ImagesSettings, input_size: tuple[int, int, int]) -> int:
    """Side of the cached squares; 0 without a cache.

    Raises:
        SettingError: below the side of the networks' images, or above twice that.
    """
    if not settings.cache.enabled:
        return 0
    side = max(input_size[1:])
    resolution = settings.cache.resolution or min(math.floor(side / settings.crop_pct), 2 * side)
    if not side <= resolution <= 2 * side:
        raise SettingError("cache.resolution", resolution, f"{side} to {2 * side}, or 0")
    return resolution


def build_missing(cache: Cache, images: ImageList, settings: ImagesSettings) -> None:
    """Fill a cache on a node that does not have it yet.

    Raises:
        DataError: images that differ from those of the list.
    """
    entries = images.entries
    build(
        cache,
        [entry.name for entry in entries],
        open_reader(settings),
        workers=settings.workers,
        progress=Quiet(),
        # Images that were left out may differ between nodes.
        digests=[entry.digest if entry.part in PARTS else "" for entry in entries],
    )


def _key(settings: ImagesSettings, names: Sequence[str], resolution: int) -> str:
    """The name of a cache; it depends on the files and the resolution."""
    reader = open_reader(settings)
    state = sha256(json.dumps([SCHEMA, PIXELS_FILE, resolution]).encode())
    where = (settings.source, settings.root, settings.name, settings.train, settings.val)
    state.update(f"{' '.join(where)} {stamp_shards(settings)}".encode(errors="replace"))
    for name in names:
        state.update(f"\n{name} {reader.stamp(name)}".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]


def _report_problems(settings: ImagesSettings, problems: Sequence[Problem], folder: Path) -> None:
    """Write the list of problems; with ``on_error: fail``, raise a `DataError` if there are any."""
    path = folder / PROBLEMS_FILE
    path.unlink(missing_ok=True)
    if not problems:
        return
    # A name may hold a line break.
    lines = [f"{json.dumps(p.name, ensure_ascii=False)}: {p.reason}" for p in problems]
    write_text(path, "\n".join(lines).encode(errors="backslashreplace").decode() + "\n")
    if settings.on_error == "fail":
        first = problems[0]
        raise DataError(
            f"{settings.root}: images or folders that cannot be used: {len(problems)}, the first: "
            f"{first.name}: {first.reason}; all are listed in {path}; repair or remove them, or "
            "set data.on_error=skip"
        )
