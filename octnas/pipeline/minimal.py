"""Minimal experiments for a folder of images, from scratch or for a trained network.

They have only the settings that depend on the data and the network.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from octnas.data.decode import BrokenImageError, read_rgb
from octnas.data.sources import Listing, list_folders
from octnas.errors import ConfigError, DataError, require
from octnas.io.files import expand_home, read_json
from octnas.nn.backbone import create_backbone, pretrained_cfg
from octnas.settings import PRETRAINED

_VAL = ("val", "validation", "valid", "test")
_SAMPLE = 200
"""The number of images whose size is read."""
_FEW_IMAGES = 100_000
_MOST_THREADS = 16
_LARGE = 64
"""Pixels up to which images are small, and networks for them narrow."""
_MULTIPLE = "  channel_multiple: 8  # fewer channels are slow on most hardware"
# Of a folder that timm loads as local-dir.
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Minimal:
    """An experiment as YAML, and folders of its data that it would refuse, with reasons."""

    name: str
    text: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, and how its images are prepared.

    Attributes:
        weights: file with timm's keys, or ``timm``.
        backbone: name of the timm model.
        args: keyword arguments for ``timm.create_model``.
        config: timm's pretrained config: ``input_size``, ``mean``, ``std``, ``crop_pct``.
        classes: names of the classes in the order of the logits; empty where they are not known.
    """

    weights: str
    backbone: str
    args: Mapping[str, Any]
    config: Mapping[str, Any]
    classes: tuple[str, ...] = ()


def read_trained(weights: str, model: str = "") -> TrainedNetwork:
    """A trained network from what the user names.

    Args:
        weights: a file with timm's keys, a folder that timm exported, or ``timm``.
        model: name of the timm model, where the weights do not say it.

    Raises:
        SettingError: no or an unknown model.
        ConfigError: a folder that is not an exported network.
    """
    args: dict[str, Any] = {}
    own: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    folder = expand_home(weights, "weights")
    if weights != PRETRAINED and folder.is_dir():
        about = read_json(folder / _CONFIG, dict[str, Any], error=ConfigError, remedy="")
        model, own = model or str(about.get("architecture", "")), about.get("pretrained_cfg") or {}
        args = dict(about.get("model_args") or {})
        classes = tuple(map(str, about.get("label_names") or own.get("label_names") or ()))
        if about.get("architecture") == "octnas_network":
            raise ConfigError(
                f"{folder}: is an octave network already, allowed: the network that it was made of"
            )
        folder /= _WEIGHTS
    found = weights == PRETRAINED or folder.is_file()
    require(found, "weights", weights, "a file, a folder that timm exported, or timm")
    allowed = "the name of a timm ResNet, such as --model resnet50, since the weights do not say it"
    require(bool(model), "model", model, allowed)
    known = pretrained_cfg(create_backbone(model, args, meta=True))
    path = weights if weights == PRETRAINED else str(folder.resolve())
    return TrainedNetwork(path, model, args, {**known, **own}, classes)


def minimal_experiment(
    root: Path,
    trained: TrainedNetwork | None = None,
    budgets: Sequence[Mapping[str, float]] = (),
    table: Path | None = None,
) -> Minimal:
    """Choose backbone, input size and batch size for a folder in ImageFolder layout.

    Args:
        root: folder with ``train/CLASS`` and ``val/CLASS``; ``val`` may also be called
            ``validation``, ``valid`` or ``test``.
        trained: the network to begin with; None to train from scratch.
        budgets: see `octnas.space.budgets.BudgetSettings`; by default those of the settings.
        table: latency table, for budgets on latency.

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
    # 1,000 images in all (500 for a trained network, whose scores differ less by chance than those
    # of a supernet), or 50 of each class up to 10,000; but at most a tenth of any class.
    least = 1000 if trained is None else 500
    wanted = max(least // classes, min(50, 10_000 // classes))
    held_out = max(1, min(wanted, fewest // 10))
    # Linear scaling of the default recipes, which are for batches of 256.
    few = train < _FEW_IMAGES
    root, name = root.resolve(), _name_of(root.resolve().name)
    if trained is not None:
        name = _name_of(trained.backbone if trained.weights == PRETRAINED else _stem(trained))
    lines = (
        f"# {root}: {classes:,} classes, {train:,} training and {len(listing.names['val']):,} "
        f"validation images,",
        f"# median size {width}×{height}. Missing settings have their defaults.",
        f"name: {_yaml(name)}",
        "space:",
        *(
            _space(min(width, height))
            if trained is None
            else _trained_space(trained, listing.classes)
        ),
        # Stem and last stage are searched, too: they have smooth channels as well.
        *([] if trained is None else ["  fixed: {}"]),
        *([f"  budgets: {_yaml([dict(one) for one in budgets])}"] if budgets else []),
        "data:",
        f"  root: {_yaml(str(root))}",
        *([] if val == "val" else [f"  val: {val}"]),
        f"  search_val_per_class: {held_out}",
        f"  read_per_class: {held_out}",
        *([] if trained is None else _preparation(trained)),
        *(["supernet: {recipe: {batch_size: 64, lr: 0.025}}"] if few and trained is None else []),
        f"search: {{threads: {_threads()}}}",
        f"retrain: {{{', '.join(_retraining(few=few, trained=trained is not None))}}}",
        *([f"latency: {{table: {_yaml(str(table.resolve()))}}}"] if table else []),
    )
    problems = tuple(f"{one.name}: {one.reason}" for one in listing.problems)
    return Minimal(name, "\n".join(lines) + "\n", problems)


def _stem(trained: TrainedNetwork) -> str:
    """A name for a network: that of its file, or of the folder that it was exported to."""
    path = Path(trained.weights)
    return path.parent.name if path.name == _WEIGHTS else path.stem


def _trained_space(trained: TrainedNetwork, classes: Sequence[str]) -> list[str]:
    own = trained.classes
    if unknown := [name for name in classes if own and name not in own]:
        raise DataError(
            f"--data: found a class {unknown[0]!r}, allowed: the {len(own):,} classes that the "
            f"network knows by name, such as {own[0]!r}; rename the folder, or remove label_names "
            "from the network's config.json"
        )
    return [
        f"  backbone: {trained.backbone}",
        *([f"  backbone_args: {_yaml(trained.args)}"] if trained.args else []),
        f"  input_size: {list(trained.config['input_size'])}",
        *([_MULTIPLE] if max(trained.config["input_size"]) > _LARGE else []),
        f"  weights: {_yaml(trained.weights)}",
        *([f"  classes: {_yaml(own)}"] if own and list(own) != list(classes) else []),
    ]


def _retraining(*, few: bool, trained: bool) -> Iterator[str]:
    """Threads, baselines of a trained network, and the recipe where there are few images."""
    yield f"threads: {_threads()}"
    if trained:
        pruned = "pruned, " if find_spec("torch_pruning") else ""
        yield f"baselines: [uniform, increasing, random, {pruned}vanilla]"
    if few:
        yield f"recipe: {{batch_size: 64, lr: {0.0025 if trained else 0.025}}}"


def _threads() -> int:
    """The cores that this process may use, up to as many as one batch can occupy."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def _preparation(trained: TrainedNetwork) -> list[str]:
    """How the trained network's images are prepared, where timm's config says it."""
    keys = ("mean", "std", "crop_pct")
    given = {key: trained.config[key] for key in keys if trained.config.get(key) is not None}
    return [f"  {key}: {_yaml(value)}" for key, value in given.items()]


def _yaml(value: Any) -> str:
    """A value as JSON, which YAML reads as well."""
    return json.dumps(value, ensure_ascii=False)


def _space(side: int) -> list[str]:
    """Backbone and input size for images of a side."""
    if side > _LARGE:
        # Whole pixels in the last stage; timm's ResNets halve images five times.
        size = min(224, side // 32 * 32)
        args = _MULTIPLE
    else:
        size = max(8, side // 8 * 8)
        stem = 2 if size >= 48 else 1
        args = (
            f"  backbone_args: {{channels: [64, 128, 256], layers: [2, 2, 2], stem_stride: {stem}}}"
        )
    backbone = "resnet50" if side > _LARGE else "thumbnail_resnet"
    return [f"  backbone: {backbone}", f"  input_size: [3, {size}, {size}]", args]


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


def _name_of(text: str) -> str:
    """A name for the experiment that `octnas.config.RunConfig` allows."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:100]
    return found or "experiment"
