"""Cluttered digits: a small image task on which spatial resolution matters.

Each 16×16 image has one whole handwritten digit at its native 8×8 at a random place, and four
4×4 fragments of other digits; overlaps take the brighter pixel. The digits are scikit-learn's
(UCI ML hand-written digits, 1,797 images), which come with the library.
"""

import numpy as np
import torch
from torch import Tensor

from octnas.training.settings import DigitsSettings

SIZE = 16
DIGIT = 8
FRAGMENT = 4
FRAGMENTS = 4
# Mean and standard deviation of the training part's pixels, scaled to [0, 1].
MEAN, STD = (0.16,), (0.32,)

# Share of the source digits that each part is made from.
_SHARES = {"train": 0.5, "rank": 0.15, "read": 0.15, "val": 0.2}


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
