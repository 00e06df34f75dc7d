"""Decoded images in one memory-mapped file, filled a shard at a time by any number of processes.

The folder of a cache holds ``pixels.u8``, all images one after another, and one JSON file for each
complete shard, which is renamed into place after the pixels are on disk. So an interrupted cache
can be resumed. A shard depends on the images alone, and processes that fill the same one write the
same bytes: there are no locks, only claims (symbolic links that name their owner, which are atomic
on network file systems too) that avoid doing the work twice. Shards begin on page boundaries, so
that two hosts never write to the same page.
"""

import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from octnas.data.batches import Asked, Shape
from octnas.data.decode import BrokenImageError, pixel_digest
from octnas.errors import DataError
from octnas.io.files import read_json, write_json

SCHEMA = 1
PIXELS_FILE = "pixels.u8"
_PAGE = 4096
# Images of a shard, rounded to whole pages: some seconds of decoding.
_SHARD = 512
# Seconds after which another process may take over a claimed shard.
_PATIENCE = 120.0

ReadImage = Callable[[int], Image.Image]
"""An RGB image by its position; raises `BrokenImageError`."""


@dataclass(frozen=True)
class Found:
    """The digest of an image's pixels, or the reason why it cannot be used."""

    digest: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Cache:
    """A cache of decoded images.

    Attributes:
        folder: of this cache alone.
        count: images.
        resolution: side of the squares in pixels; 0 to keep digests and reasons only.
    """

    folder: Path
    count: int
    resolution: int

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return 3 * self.resolution**2

    @cached_property
    def shard_images(self) -> int:
        """Images of a shard, which fills whole pages."""
        whole = _PAGE // math.gcd(_PAGE, self.image_bytes) if self.resolution else 1
        return whole * max(1, round(_SHARD / whole))

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.shard_images)

    def positions(self, shard: int) -> range:
        """The images of a shard."""
        begin = shard * self.shard_images
        return range(begin, min(begin + self.shard_images, self.count))

    def missing(self) -> list[int]:
        """Shards that are not complete.

        Raises:
            DataError: some are, but the file of the pixels is missing or truncated.
        """
        there = {path.name for path in self.folder.glob("shard-*.json")}
        found = [shard for shard in range(self.shards) if self._file(shard).name not in there]
        path = self.folder / PIXELS_FILE
        size = path.stat().st_size if path.exists() else 0
        # The file has its full size before the first shard is complete.
        if len(found) < self.shards and size != self.count * self.image_bytes:
            raise DataError(
                f"data.cache: {path} is truncated or missing; remove {self.folder}, "
                "and the same command rebuilds it"
            )
        return found

    def found(self) -> list[Found]:
        """The digest or reason of every image of a complete cache."""
        everything: list[Found] = []
        remedy = f"remove {self.folder}; the same command rebuilds it"
        for shard in range(self.shards):
            path = self._file(shard)
            everything += read_json(
                path, list[Found], schema=SCHEMA, key="images", error=DataError, remedy=remedy
            )
        return everything

    @cached_property
    def pixels(self) -> np.ndarray:
        """All images, memory-mapped: ``(count, resolution, resolution, 3)`` uint8."""
        shape = (self.count, self.resolution, self.resolution, 3)
        return np.memmap(self.folder / PIXELS_FILE, np.uint8, mode="r", shape=shape)

    def check_room(self) -> None:
        """Refuse to fill the cache if the disk is too small.

        Raises:
            DataError: naming both sizes.
        """
        needed = sum(len(self.positions(shard)) for shard in self.missing()) * self.image_bytes
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise DataError(
                f"data.cache: needs {gigabytes(needed)} in {self.folder}, which has "
                f"{gigabytes(free)} left; set data.cache.folder to another disk, a smaller "
                "data.cache.resolution, or data.cache.enabled to false"
            )

    def claim(self, shard: int) -> bool:
        """Whether this process is to fill a shard, since no other has or does."""
        if self._file(shard).exists():
            return False
        # Without links, work may be done twice; whatever else is wrong, `fill` reports.
        with suppress(OSError):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._claim(shard).symlink_to(f"{os.uname().nodename} {os.getpid()}")
            except FileExistsError:
                # A claim is removed after its shard has been written.
                return self.unclaimed(shard) and not self._file(shard).exists()
        return True

    def unclaimed(self, shard: int) -> bool:
        """Whether no live process has claimed a shard."""
        try:
            host, pid = str(self._claim(shard).readlink()).split()
            if host == os.uname().nodename and not _alive(int(pid)):
                return True
            return _now(self.folder) - self._claim(shard).lstat().st_mtime > _PATIENCE
        except (OSError, ValueError):
            return True

    def fill(self, shard: int, images: ReadImage) -> None:
        """Decode the images of a shard and write them.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        shape = _square(self.resolution) if self.resolution else None
        found: list[dict[str, str]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / PIXELS_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            with os.fdopen(handle, "r+b") as file:
                # The full size at once; a sparse file.
                os.ftruncate(file.fileno(), self.count * self.image_bytes)
                for position in self.positions(shard):
                    try:
                        image = images(position)
                    except BrokenImageError as error:
                        found.append({"reason": str(error)})
                        continue
                    found.append({"digest": pixel_digest(image)})
                    if shape is not None:
                        file.seek(position * self.image_bytes)
                        file.write(np.asarray(shape(image)).tobytes())
                file.flush()
                os.fsync(file.fileno())
            write_json(self._file(shard), {"schema": SCHEMA, "images": found})
        except OSError as error:
            raise DataError(
                f"data.cache: {self.folder} cannot be written to ({error}); what is there is kept"
            ) from error
        finally:
            with suppress(OSError):
                self._claim(shard).unlink()

    def _claim(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.claim"

    def _file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.json"


class CachedImages:
    """The images at some positions of a cache, ``(count, side, side, 3)`` uint8, with labels."""

    def __init__(self, pixels: np.ndarray, positions: Iterable[int], labels: Sequence[int]) -> None:
        self._pixels = pixels
        self._positions = np.fromiter(positions, np.int64)
        self._labels = torch.tensor(labels, dtype=torch.long)

    def __len__(self) -> int:
        return len(self._labels)

    def some(self, chosen: Sequence[int]) -> "CachedImages":
        """Those at some positions."""
        return CachedImages(self._pixels, self._positions[chosen], self._labels[chosen].tolist())

    def shaped(self, asked: Asked, shape: Shape, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `octnas.data.batches.StoredImages`."""

        def prepare(pixels: Tensor, draws: Tensor) -> Tensor:
            images = zip(map(Image.fromarray, pixels.numpy()), draws.tolist(), strict=True)
            return torch.from_numpy(np.stack([shape(image, row) for image, row in images]))

        return self.prepared(asked, prepare, start)

    def prepared(
        self, asked: Asked, prepare: Callable[[Tensor, Tensor], Tensor], start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(n, side, side, 3)`` uint8 as a function returns them, with labels ``(n,)``.

        The function also takes the batch's random numbers, and runs in another thread.
        """
        # One batch ahead: reading and resampling release the interpreter.
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
            for batch in range(start, len(asked)):
                waiting.append(pool.submit(self._batch, *asked[batch], prepare))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            if waiting:
                yield waiting.popleft().result()

    def _batch(
        self, indices: Tensor, draws: Tensor, prepare: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        stored = torch.from_numpy(self._pixels[self._positions[indices.numpy()]])
        pixels, labels = prepare(stored, draws), self._labels[indices]
        if torch.cuda.is_available():
            return pixels.pin_memory(), labels.pin_memory()
        return pixels, labels


def gigabytes(size: int) -> str:
    """A size with its unit."""
    return f"{size / 1e9:,.1f} GB" if size >= 5e7 else f"{size / 1e6:,.1f} MB"


def _square(side: int) -> Callable[[Image.Image], Image.Image]:
    """As timm prepares images for evaluation: resize the shorter side, then crop the centre."""
    resize = v2.Resize(side, interpolation=v2.InterpolationMode.BILINEAR)
    shape: Any = v2.Compose([resize, v2.CenterCrop(side)])
    return shape  # type: ignore[no-any-return]


def _alive(pid: int) -> bool:
    """Whether a process of this host exists."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which may be remote."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
