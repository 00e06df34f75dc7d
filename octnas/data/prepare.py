"""Before anything is trained: which images there are, which can be used, and what for.

Looking at every image once: decoding it, and keeping what a cache needs.
"""

import json
import math
import os
import random
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
from octnas.data.settings import CACHE, DataSettings, DigitsSettings, ImagesSettings
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
from octnas.io.files import expand_home, write_json, write_text
from octnas.runtime.progress import Progress, Quiet


def build(
    cache: Cache,
    names: Sequence[str],
    reader: Reader,
    *,
    workers: int,
    progress: Progress,
    title: str = "images",
    digests: Sequence[str] = (),
) -> None:
    """Make a cache whole; other processes may be doing the same.

    Args:
        cache: what is there already is kept.
        names: of all images, in the order of the cache.
        reader: opens them.
        workers: processes that decode; 0 for this one.
        progress: shows the shards.
        title: of the bar.
        digests: that the images must have, by position; where empty, or without any, each is
            taken as it is. A shard with another image is not written, so that whoever comes later
            is refused too.

    Raises:
        DataError: the disk is full or too small for what is missing, or an image is another.
    """
    if not (missing := cache.missing()):
        return
    cache.check_room()
    with progress.bar(title, cache.shards) as bar:
        bar.advance(cache.shards - len(missing))
        if isinstance(reader, StreamReader):
            for shard in _fill_from_stream(cache, names, reader, missing, digests):
                bar.advance(note=f"shard {shard}")
            return
        work = _Shards(cache, names, reader, digests)
        # Several processes begin in different places, and so seldom meet.
        random.Random(f"{os.uname().nodename} {os.getpid()}").shuffle(missing)  # noqa: S311
        while missing:
            own = 0
            for result in work.of([s for s in missing if cache.unclaimed(s)], workers):
                if isinstance(result, str):
                    raise DataError(result)
                own += result
                bar.advance(int(result))
            before, missing = len(missing), cache.missing()
            bar.advance(before - len(missing) - own)
            cache.wait(missing)


def look_again(cache: Cache, names: Sequence[str], reader: Reader) -> list[Found]:
    """What is known of all images, after another look at those that could not be read.

    A file that nobody was allowed to read, or on a disk that was away, looks as it did before.

    Args:
        cache: whole.
        names, reader: as for `build`.
    """
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
class _Shards(Dataset[bool | str]):
    """Shards that are filled as they are asked for: whether that was done, or why it cannot be.

    An exception would come out of a loader's process with its traceback as its text.
    """

    cache: Cache
    names: Sequence[str]
    reader: Reader
    digests: Sequence[str]

    def __getitem__(self, shard: int) -> bool | str:
        if not self.cache.claim(shard):
            return False

        def read(position: int) -> Image.Image:
            return self.reader.read(self.names[position])

        try:
            self.cache.fill(shard, _as_listed(read, self.names, self.digests))
        except DataError as error:
            return str(error)
        return True

    def of(self, shards: list[int], workers: int) -> Iterator[bool | str]:
        if not shards:
            return
        yield from load(self, workers, batch_size=None, sampler=shards)


def _fill_from_stream(
    cache: Cache,
    names: Sequence[str],
    reader: StreamReader,
    missing: Sequence[int],
    digests: Sequence[str],
) -> Iterator[int]:
    """Fill shards in order, from images that come in order."""
    stream = _named(names, reader)
    images = _as_listed(lambda _: read_rgb(next(stream)), names, digests)
    for shard in range(cache.shards):
        if shard in cache.missing():
            # Images of a shard are asked for in order; many would not fit into memory.
            cache.fill(shard, images)
        else:
            for _ in cache.positions(shard):
                next(stream)
        if shard in missing:
            yield shard


def _as_listed(images: ReadImage, names: Sequence[str], digests: Sequence[str]) -> ReadImage:
    """The same images, each refused if it is not the one that a list has."""
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
            "restore it below data.root, or begin anew with --fresh data"
        )

    return checked


def _named(names: Sequence[str], reader: StreamReader) -> Iterator[Image.Image]:
    """The images of the names, which are in the order of the streams."""
    splits = dict.fromkeys(name.split("/")[0] for name in names)
    wanted = iter(names)
    name = next(wanted, None)
    for split in splits:
        for found, image in reader.stream(split):
            if found == name:
                yield image
                name = next(wanted, None)
    if name is not None:
        raise DataError(f"{name}: is not in the shards any more")


SCHEMA = 1
PROBLEMS_FILE = "problems.txt"
CHECKED_FOLDER = "checked"


def prepare_images(
    settings: DataSettings, input_size: tuple[int, int, int], folder: Path, progress: Progress
) -> None:
    """Look at every image once, and write down which are used and what for.

    Args:
        settings: of the data.
        input_size: channels, height and width of the networks' images.
        folder: where the list goes; a broken-off look at images is gone on with.
        progress: bars and lines for the user.

    Raises:
        DataError: data that cannot be found or do not fit, images that cannot be used (all of
            them listed in ``problems.txt``), or a disk that is too small for the cache.
        SettingError: a setting that does not fit the input size.
    """
    if isinstance(settings, DigitsSettings):
        counts = {
            p: getattr(settings, f"{p}_images") for p in ("train", "search_val", "read", "val")
        }
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
    # Without a cache it is noted here what was looked at.
    where = cache_folder(settings) if resolution else folder / CHECKED_FOLDER
    cache = Cache(where / key, len(names), resolution)
    if cache.resolution:
        size = gigabytes(len(names) * cache.image_bytes)
        progress.say(
            f"data: {len(names):,} images at {cache.resolution}×{cache.resolution}: a cache of "
            f"{size} in {cache.folder}"
        )
    reader = open_reader(settings)
    build(cache, names, reader, workers=settings.workers, progress=progress, title="data")
    looked = look_again(cache, names, reader)
    gone = broken_classes(listing, looked)
    problems = [*listing.problems, *gone]
    problems += [Problem(n, one.reason) for n, one in zip(names, looked, strict=True) if one.reason]
    _report_problems(settings, problems, folder)
    classes, entries = sort_out(settings, listing, looked, {problem.name for problem in gone})
    write_images(
        ImageList(classes, entries, tuple(problems), key, resolution, max(input_size[1:])), folder
    )


def cache_resolution(settings: ImagesSettings, input_size: tuple[int, int, int]) -> int:
    """Side of the cached squares; 0 without a cache.

    Raises:
        SettingError: too small for the networks, or so large that crops would alias.
    """
    if not settings.cache.enabled:
        return 0
    side = max(input_size[1:])
    resolution = settings.cache.resolution or min(math.floor(side / settings.crop_pct), 2 * side)
    if not side <= resolution <= 2 * side:
        raise SettingError("cache.resolution", resolution, f"{side} to {2 * side}, or 0")
    return resolution


def cached_squares(images: ImageList, settings: ImagesSettings, side: int) -> int:
    """Side of the squares that networks are trained on whose images have this side.

    0 where their images come from the files: without a cache, and where they are larger than those
    that it was made for, as at other test sizes. Smaller ones, of plain networks beside a search,
    come from the cache, whose squares shrink as the images do: so all networks of a run see the
    same share of an image, by the same augmentation.
    """
    if not settings.cache.enabled or not images.resolution:
        return 0
    if side > images.side:
        # Shards have an order that batches cannot follow.
        return images.resolution if settings.streamed else 0
    return images.resolution * side // images.side


def cache_folder(settings: ImagesSettings) -> Path:
    """Where the caches of this node lie.

    Raises:
        ConfigError: in the home of a user who has none.
    """
    return expand_home(settings.cache.folder or CACHE, "data.cache.folder").absolute()


def build_missing(cache: Cache, images: ImageList, settings: ImagesSettings) -> None:
    """Make a cache whole on a node that does not have it yet.

    Raises:
        DataError: images that are not those of the list.
    """
    if not cache.missing():
        return
    entries = images.entries
    build(
        cache,
        [entry.name for entry in entries],
        open_reader(settings),
        workers=settings.workers,
        progress=Quiet(),
        # What was left out may differ elsewhere.
        digests=[entry.digest if entry.part in PARTS else "" for entry in entries],
    )


def _key(settings: ImagesSettings, names: Sequence[str], resolution: int) -> str:
    """A name for a cache: other files, or the same at another size, get another."""
    reader = open_reader(settings)
    state = sha256(json.dumps([SCHEMA, PIXELS_FILE, resolution]).encode())
    where = (settings.source, settings.root, settings.name, settings.train, settings.val)
    state.update(f"{' '.join(where)} {stamp_shards(settings)}".encode(errors="replace"))
    for name in names:
        state.update(f"\n{name} {reader.stamp(name)}".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]


def _report_problems(settings: ImagesSettings, problems: Sequence[Problem], folder: Path) -> None:
    """Write the list of what cannot be used.

    Raises:
        DataError: there is something in it, and it shall not be skipped.
    """
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
            f"{first.name}: "
            f"{first.reason}; all are listed in {path}; mend or remove them, or set "
            "data.on_error=skip"
        )
