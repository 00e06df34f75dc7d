"""Small image trees and data that is prepared."""

from pathlib import Path

import numpy as np
from PIL import Image

from octnas.data.image_list import ImageList, read_images
from octnas.data.images import Data
from octnas.data.prepare import prepare_images
from octnas.data.settings import DataSettings, ImagesSettings
from octnas.runtime.progress import Quiet

COLOURS = ("blue", "red")
SIZE = (3, 16, 16)


def make_tree(root: Path, train: int = 12, val: int = 4) -> Path:
    """Two classes of one colour each: so many different images of 20×24 pixels per class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(COLOURS):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 40, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 * (1 - label)] += 200
                Image.fromarray(pixels).save(folder / f"{index}.jpeg")
    return root


def prepared(
    settings: DataSettings,
    folder: Path,
    input_size: tuple[int, int, int] = (3, 16, 16),
    lines: list[str] | None = None,
) -> Data:
    """The data with its image list in a folder."""
    said = [] if lines is None else lines
    prepare_images(settings, input_size, folder, Quiet(said.append))
    return Data(settings, folder)


def looked(settings: ImagesSettings, folder: Path, size: tuple[int, int, int] = SIZE) -> ImageList:
    return read_images(prepared(settings, folder, size).folder)
