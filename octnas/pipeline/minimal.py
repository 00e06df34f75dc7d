"""A minimal experiment for a folder of images: only the settings that depend on the data."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from octnas.data.decode import BrokenImageError, read_rgb
from octnas.data.sources import Listing, list_folders
from octnas.errors import DataError

_VAL = ("val", "validation", "valid", "test")
_SAMPLE = 200
"""The number of images whose size is read."""
_FEW_IMAGES = 100_000


@dataclass(frozen=True)
class Minimal:
    """An experiment as YAML, and folders of its data that it would refuse, with reasons."""

    name: str
    text: str
    problems: tuple[str, ...] = ()


def minimal_experiment(root: Path) -> Minimal:
    """Choose backbone, input size and batch size for a folder in ImageFolder layout.

    Args:
        root: folder with ``train/CLASS`` and ``val/CLASS``; ``val`` may also be called
            ``validation``, ``valid`` or ``test``.

    Raises:
        DataError: the folder has another layout, or too few images.
    """
    val = next((name for name in _VAL if (root / name).is_dir()), None)
    if val is None or not (root / "train").is_dir():
        raise DataError(
            f"--data: found {str(root)!r}, allowed: a folder with train/CLASS and val/CLASS, each "
            "class a folder of images"
        )
    listing = list_folders(root, {"train": "train", "val": val})
    classes = len(listing.classes)
    fewest = min(Counter(listing.labels["train"]).values())
    if fewest < 3:
        raise DataError(
            f"--data: found a class with {fewest} training image{'s' * (fewest > 1)} in {root}, "
            "allowed: 3 or more in each class"
        )
    width, height = _median_size(root, listing)
    train = len(listing.names["train"])
    # 1,000 images in all, or 50 of each class up to 10,000; but at most a tenth of any class.
    wanted = max(1000 // classes, min(50, 10_000 // classes))
    held_out = max(1, min(wanted, fewest // 10))
    # Linear scaling of the default recipes, which are for batches of 256.
    recipe = "{batch_size: 64, lr: 0.025}" if train < _FEW_IMAGES else ""
    root = root.resolve()
    lines = (
        f"# {root}: {classes:,} classes, {train:,} training and {len(listing.names['val']):,} "
        f"validation images,",
        f"# median size {width}×{height}. Missing settings have their defaults.",
        f"name: {_name_of(root)}",
        "space:",
        *_space(min(width, height)),
        "data:",
        f"  root: {json.dumps(str(root), ensure_ascii=False)}",
        *([] if val == "val" else [f"  val: {val}"]),
        f"  search_val_per_class: {held_out}",
        f"  read_per_class: {held_out}",
        *([f"supernet: {{recipe: {recipe}}}", f"retrain: {{recipe: {recipe}}}"] if recipe else []),
    )
    problems = tuple(f"{one.name}: {one.reason}" for one in listing.problems)
    return Minimal(_name_of(root), "\n".join(lines) + "\n", problems)


def _space(side: int) -> list[str]:
    """Backbone and input size for images of a side."""
    if side > 64:
        # Whole pixels in the last stage; timm's ResNets halve images five times.
        size = min(224, side // 32 * 32)
        args = "channel_multiple: 8  # fewer channels are slow on most hardware"
    else:
        size = max(8, side // 8 * 8)
        stem = 2 if size >= 48 else 1
        args = (
            f"backbone_args: {{channels: [64, 128, 256], layers: [2, 2, 2], stem_stride: {stem}}}"
        )
    backbone = "resnet50" if side > 64 else "thumbnail_resnet"
    return [f"  backbone: {backbone}", f"  input_size: [3, {size}, {size}]", f"  {args}"]


def _median_size(root: Path, listing: Listing) -> tuple[int, int]:
    """Median width and height of a sample of the training images, in pixels.

    Raises:
        DataError: none of them can be read.
    """
    names = listing.names["train"]
    sizes = []
    for name in islice(names, 0, None, max(1, len(names) // _SAMPLE)):
        try:
            sizes.append(read_rgb(root / name).size)
        except BrokenImageError:
            continue
    if not sizes:
        raise DataError(f"--data: found no training image in {root} that can be read")
    return int(median(width for width, _ in sizes)), int(median(height for _, height in sizes))


def _name_of(root: Path) -> str:
    """A name for the experiment that `octnas.config.RunConfig` allows."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).lstrip("._-")[:100]
    return found or "experiment"
