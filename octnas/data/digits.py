"""Cluttered digits: a small image task on which spatial resolution matters.

Each 16×16 image has one whole handwritten digit at its native 8×8 at a random place, and four
4×4 fragments of other digits; overlaps take the brighter pixel. The digits are scikit-learn's
(UCI ML hand-written digits, 1,797 images), which come with the library.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octnas.data.batches import WHOLE, Part, epoch_generator, epoch_order, spread
from octnas.data.settings import DigitsSettings

SIZE = 16
DIGIT = 8
FRAGMENT = 4
FRAGMENTS = 4
# Mean and standard deviation of the training part's pixels, scaled to [0, 1].
MEAN, STD = (0.16,), (0.32,)

CLASSES = tuple(str(digit) for digit in range(10))

# Share of the source digits that each part is made from.
_SHARES = {"train": 0.5, "search_val": 0.15, "read": 0.15, "val": 0.2}


def make_digits(settings: DigitsSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """The four parts: images ``(n, 1, 16, 16)`` uint8 and labels ``(n,)`` int64, by part."""
    from sklearn.datasets import load_digits

    sources = load_digits()
    # Pixel values are 0 to 16.
    pixels = np.minimum(sources.images * 16, 255).astype(np.uint8)
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(pixels))
    ends = np.cumsum([round(share * len(pixels)) for share in _SHARES.values()])
    parts = {}
    cuts = np.split(order, ends[:-1])
    # A stream for each part, so that the size of one does not change the images of another.
    for part, own, stream in zip(_SHARES, cuts, rng.spawn(len(_SHARES)), strict=True):
        count = getattr(settings, f"{part}_images")
        images, labels = _compose(pixels[own], sources.target[own], count, stream)
        parts[part] = (torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    return parts


def digest_of_digits(settings: DigitsSettings) -> str:
    """A hash of all images and labels."""
    state = sha256()
    for part, (images, labels) in make_digits(settings).items():
        # By the name that search_val had first, so that digests compare across versions.
        named = "rank" if part == "search_val" else part
        state.update(named.encode() + images.numpy().tobytes() + labels.numpy().tobytes())
    return state.hexdigest()[:16]


def _compose(
    pixels: np.ndarray, targets: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images from the source digits of one part."""
    images = np.zeros((count, SIZE, SIZE), dtype=np.uint8)
    chosen = rng.integers(len(pixels), size=count)
    for image, digit in zip(images, chosen, strict=True):
        _place(image, pixels[digit], rng)
        others = np.flatnonzero(targets != targets[digit])
        for other in rng.choice(others, size=FRAGMENTS):
            top, left = rng.integers(DIGIT - FRAGMENT + 1, size=2)
            _place(image, pixels[other][top : top + FRAGMENT, left : left + FRAGMENT], rng)
    return images, targets[chosen].astype(np.int64)


def _place(image: np.ndarray, patch: np.ndarray, rng: np.random.Generator) -> None:
    """Put a square patch at a random place; the brighter pixel stays."""
    side = len(patch)
    top, left = rng.integers(SIZE - side + 1, size=2)
    region = image[top : top + side, left : left + side]
    np.maximum(region, patch, out=region)


class DigitImages:
    """Cluttered digits, held in memory; resized for networks of another input size."""

    def __init__(self, settings: DigitsSettings, side: int = SIZE) -> None:
        self.classes = CLASSES
        self._side, self._padding = side, settings.padding
        self._parts = make_digits(settings)

    def train_batches(self, batch_size: int, seed: int, part: Part = WHOLE) -> "_Shuffled":
        """See `Images.train_batches`."""
        part.check(batch_size)
        return _Shuffled(*self._parts["train"], batch_size, self._padding, seed, part, self._side)

    def batches(self, part: str, batch_size: int, most: int = 0) -> list[tuple[Tensor, Tensor]]:
        """See `Images.batches`."""
        images, labels = self._parts[part]
        if most:
            chosen = spread(len(labels), most)
            images, labels = images[chosen], labels[chosen]
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        return [(_normalise(some, self._side), targets) for some, targets in pairs]

    def count(self, part: str) -> int:
        """See `Images.count`."""
        return len(self._parts[part][1])


@dataclass(frozen=True)
class _Shuffled:
    """Training batches from images in memory, randomly shifted."""

    images: Tensor
    labels: Tensor
    batch_size: int
    padding: int
    seed: int
    part: Part
    side: int

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `octnas.data.batches.TrainingBatches.epoch`."""
        order = epoch_order(len(self.labels), self.batch_size, self.seed, number)
        generator = epoch_generator(self.seed, number, 1)
        corners = torch.randint(2 * self.padding + 1, (*order.shape, 2), generator=generator)
        for chosen, corner in zip(order[start:], corners[start:], strict=True):
            mine = self.part.of(chosen)
            padded = F.pad(self.images[mine], [self.padding] * 4)
            rows, columns = self.part.of(corner).T[:, :, None] + torch.arange(SIZE)
            index = torch.arange(len(mine))[:, None, None]
            crops = padded[index, 0, rows[:, :, None], columns[:, None]][:, None]
            yield _normalise(crops, self.side), self.labels[mine]


def _normalise(images: Tensor, side: int) -> Tensor:
    """uint8 digits to normalised float32, resized where a network takes others."""
    found = (images.float() / 255 - MEAN[0]) / STD[0]
    if side == SIZE:
        return found
    return F.interpolate(found, size=(side, side), mode="bilinear", antialias=True)
