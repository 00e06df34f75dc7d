"""Looking at every image once: decoding it, and keeping what a cache needs."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch.utils.data import Dataset

from octnas.data.cache import Cache, Found, ReadImage
from octnas.data.decode import BrokenImageError, pixel_digest, read_rgb
from octnas.data.loader import load
from octnas.data.sources import Reader, StreamReader
from octnas.errors import DataError
from octnas.progress import Progress


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
