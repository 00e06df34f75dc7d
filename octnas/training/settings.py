"""The settings of data and training, without torch, so that a config is checked in no time."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from octnas.errors import require, require_seed
from octnas.settings import HOW

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sampling = Literal["by_macs", "uniform"]
Baseline = Literal["uniform", "growing", "vanilla"]


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Cluttered digits, made from scikit-learn's handwritten digits; nothing to download.

    Attributes:
        source: ``digits``.
        train_images, rank_images, read_images, val_images: size of the four parts, which come
            from disjoint source digits.
        seed: of the images; apart from the experiment's seed, so that seeds share one data set.
        padding: training images are shifted by up to so many pixels.
    """

    source: Literal["digits"] = "digits"
    train_images: int = 4000
    rank_images: int = 1000
    read_images: int = 1000
    val_images: int = 2000
    seed: int = 0
    padding: int = 1

    def __post_init__(self) -> None:
        for key in ("train_images", "rank_images", "read_images", "val_images"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        require_seed("seed", self.seed)
        require(0 <= self.padding <= 8, "padding", self.padding, "0 to 8")


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """Images in the ImageFolder layout: one folder per class below a training and a val folder.

    Attributes:
        source: ``folder``.
        root: folder that holds the two.
        train, val: their names below ``root``.
        rank_per_class, read_per_class: images of each class that are taken from the training
            folder, by ``seed``, to rank candidates and to read the chosen ones.
        seed: of that choice.
        scale: smallest share of an image's area that a training crop keeps.
        hflip: probability of a horizontal flip in training.
        crop_pct: share of the side that the centre crop keeps in evaluation.
        mean, std: of the pixel values, by which images are normalised.
        workers: processes that decode images.
    """

    source: Literal["folder"] = "folder"
    root: str = ""
    train: str = "train"
    val: str = "val"
    rank_per_class: int = 50
    read_per_class: int = 50
    seed: int = 0
    scale: float = 0.35
    hflip: float = 0.5
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    workers: int = field(default=2, metadata=HOW)

    def __post_init__(self) -> None:
        for key in ("rank_per_class", "read_per_class"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        require_seed("seed", self.seed)
        require(0 < self.scale <= 1, "scale", self.scale, "above 0, at most 1")
        require(0 <= self.hflip <= 1, "hflip", self.hflip, "0 to 1")
        require(0 < self.crop_pct <= 1, "crop_pct", self.crop_pct, "above 0, at most 1")
        require(min(self.std) > 0, "std", self.std, "numbers above 0")
        require(self.workers >= 0, "workers", self.workers, "0 or more")


DataSettings = DigitsSettings | FolderSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: timm's optimizers and schedules.

    Attributes:
        epochs: passes over the training part, warm-up included.
        batch_size: images per step.
        optimizer: a name that ``timm.optim.create_optimizer_v2`` knows.
        lr: peak learning rate.
        momentum: of optimizers that have one.
        weight_decay: on weights; not on biases and normalisation, as timm has it.
        scheduler: a name that ``timm.scheduler.create_scheduler_v2`` knows, stepped per update.
        warmup_epochs: of linear warm-up from zero; may be a fraction.
        label_smoothing: 0 for none.
        clip_grad: largest norm of the gradient; 0 for no limit.
    """

    epochs: int = 8
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scheduler: str = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    clip_grad: float = 0.0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        require(0 < self.lr < inf, "lr", self.lr, "a number above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 to below 1")
        require(0 <= self.weight_decay < inf, "weight_decay", self.weight_decay, "0 or more")
        require(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"0 to below epochs ({self.epochs})",
        )
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 to 1")
        require(0 <= self.clip_grad < inf, "clip_grad", self.clip_grad, "0 or more")


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """How the supernet is trained.

    Attributes:
        sampling: which architecture a step trains: ``by_macs`` draws a cost first, then an
            architecture of that cost; ``uniform`` draws every site's α evenly.
        threads: CPU threads; 0 for all cores, whose number then decides the last digits.
        recipe: optimizer and schedule.
    """

    sampling: Sampling = "by_macs"
    threads: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        require(self.threads >= 0, "threads", self.threads, "0 or more")


@dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """How the chosen networks and the baselines are trained from scratch.

    Attributes:
        seeds: one training of every network for each.
        baselines: what is trained beside the searched networks.
        threads: CPU threads of one training.
        workers: trainings at a time, each in a process of its own; 1 trains in this process.
        recipe: the same for every network.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[Baseline, ...] = ("uniform", "growing", "vanilla")
    threads: int = 1
    workers: int = field(default=2, metadata=HOW)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds", self.seeds, "one or more")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "distinct seeds")
        for seed in self.seeds:
            require_seed("seeds", seed)
        distinct = len(set(self.baselines)) == len(self.baselines)
        require(distinct, "baselines", self.baselines, "distinct baselines")
        require(self.threads >= 1, "threads", self.threads, "1 or more")
        require(self.workers >= 1, "workers", self.workers, "1 or more")
