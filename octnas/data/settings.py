"""The settings of data, without torch, so that a config is checked in no time."""

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal, get_args

from octnas.errors import require, require_seed
from octnas.settings import HOW

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Source = Literal["folder", "imagenet", "imagenette", "cifar10", "cifar100", "timm"]
SOURCES: tuple[str, ...] = get_args(Source)
OnError = Literal["fail", "skip"]

# Of torchvision, which can download these.
DOWNLOADED = ("imagenette", "cifar10", "cifar100")

# Of one part; they are made one after another and held in memory.
_MOST_DIGITS = 1_000_000

CACHE = "~/.cache/octnas"
"""Where caches of images lie unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Cluttered digits, made from scikit-learn's handwritten digits; nothing to download.

    Attributes:
        source: ``digits``.
        train_images, search_val_images, read_images, val_images: size of the four parts, which come
            from disjoint source digits.
        seed: of the images; apart from the experiment's seed, so that seeds share one data set.
        padding: training images are shifted by up to so many pixels.
    """

    source: Literal["digits"] = "digits"
    train_images: int = 4000
    search_val_images: int = 1000
    read_images: int = 1000
    val_images: int = 2000
    seed: int = 0
    padding: int = 1

    def __post_init__(self) -> None:
        for key in ("train_images", "search_val_images", "read_images", "val_images"):
            count = getattr(self, key)
            require(1 <= count <= _MOST_DIGITS, key, count, f"1 to {_MOST_DIGITS}")
        require_seed("seed", self.seed)
        require(0 <= self.padding <= 8, "padding", self.padding, "0 to 8")


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    """Which of a source's images are used; what is drawn is drawn by the data's seed.

    Attributes:
        classes: names of classes; all if empty.
        class_count: so many of those classes; 0 for all.
        images_per_class: at most so many training images of each class; 0 for all.
        fraction: share of each class's training images, of which at most ``images_per_class``.
    """

    classes: tuple[str, ...] = ()
    class_count: int = 0
    images_per_class: int = 0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        distinct = len(set(self.classes)) == len(self.classes)
        require(distinct, "classes", self.classes, "every class once")
        require(self.class_count >= 0, "class_count", self.class_count, "0 or more")
        require(self.images_per_class >= 0, "images_per_class", self.images_per_class, "0 or more")
        require(0 < self.fraction <= 1, "fraction", self.fraction, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What training images go through.

    Attributes:
        scale: smallest share of an image's area that a crop keeps.
        hflip: probability of a horizontal flip.
        color_jitter: largest relative change of brightness, contrast and saturation.
        rand_augment: operations of RandAugment per image (arXiv 1909.13719); 0 for none.
        magnitude: of these, 0 to 10.
        mixup: α of Mixup's Beta distribution; 0 for none.
        cutmix: α of CutMix's; with both, each batch gets one of the two.
    """

    scale: float = 0.35
    hflip: float = 0.5
    color_jitter: float = 0.0
    rand_augment: int = 0
    magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.scale <= 1, "scale", self.scale, "above 0, at most 1")
        require(0 <= self.hflip <= 1, "hflip", self.hflip, "0 to 1")
        require(0 <= self.color_jitter < 1, "color_jitter", self.color_jitter, "0 to below 1")
        require(0 <= self.rand_augment <= 10, "rand_augment", self.rand_augment, "0 to 10")
        require(0 <= self.magnitude <= 10, "magnitude", self.magnitude, "0 to 10")
        require(0 <= self.mixup < inf, "mixup", self.mixup, "0 or more")
        require(0 <= self.cutmix < inf, "cutmix", self.cutmix, "0 or more")


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Images decoded once, as a memory-mapped file of squares.

    Smaller plain networks beside a search have theirs from it, too; at larger test sizes images
    come from the files.

    Attributes:
        enabled: whether there is one; then augmentation works on batches, on the device.
        resolution: side of the squares; 0 for what evaluation resizes images to.
        folder: where caches lie, one for every node; by default ``~/.cache/octnas``.
    """

    enabled: bool = False
    resolution: int = 0
    folder: str = field(default="", metadata=HOW)

    def __post_init__(self) -> None:
        require(self.resolution >= 0, "resolution", self.resolution, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ImagesSettings:
    """Images from a folder or a data set that torchvision or timm can read.

    Attributes:
        source: ``folder`` (ImageFolder layout), ``imagenet``, ``imagenette``, ``cifar10``,
            ``cifar100`` (torchvision's), or ``timm`` (shards, by timm's own readers).
        root: folder of the data; for ``hfds/``, where the library makes copies under locks of its
            own: better a disk of the node than a network's.
        name: of a timm data set: ``wds/`` or ``hfds/PATH``.
        train, val: names of the two splits; for ``folder``, of the folders below ``root``.
        download: whether what is missing may be fetched from the network.
        search_val_per_class, read_per_class: images of each class that are taken from the training
            images, by ``seed``, to rank candidates and to read the chosen ones.
        seed: of that choice and of the subset.
        on_error: ``fail`` if an image or class cannot be used, or ``skip`` it.
        subset: which images are used.
        augment: what training images go through.
        crop_pct: share of the side that the centre crop keeps in evaluation.
        mean, std: of the pixel values, by which images are normalised.
        cache: of decoded images.
        workers: processes that decode images.
    """

    source: Source = "folder"
    root: str = ""
    name: str = ""
    train: str = "train"
    val: str = "val"
    download: bool = field(default=False, metadata=HOW)
    search_val_per_class: int = 50
    read_per_class: int = 50
    seed: int = 0
    on_error: OnError = "fail"
    subset: SubsetSettings = field(default_factory=SubsetSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    cache: CacheSettings = field(default_factory=CacheSettings)
    workers: int = field(default=2, metadata=HOW)

    def __post_init__(self) -> None:
        for key in ("search_val_per_class", "read_per_class"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        require_seed("seed", self.seed)
        # Evaluation resizes images to the side of its crop over this, before it crops.
        require(0.1 <= self.crop_pct <= 1, "crop_pct", self.crop_pct, "0.1 to 1")
        require(all(map(isfinite, self.mean)), "mean", self.mean, "finite numbers")
        # `min` would pass over what is no number.
        above = all(0 < value < inf for value in self.std)
        require(above, "std", self.std, "finite numbers above 0")
        require(self.workers >= 0, "workers", self.workers, "0 or more")
        timm = self.source == "timm"
        # timm finds WebDataset shards by the root alone.
        named = self.name == "wds/" or self.name.removeprefix("hfds/") not in ("", self.name)
        fits = named if timm else not self.name
        allowed = "wds/, in root, or hfds/PATH" if timm else f"'' with source {self.source}"
        require(fits, "name", self.name, allowed)
        can = not self.download or self.source in DOWNLOADED or self.name.startswith("hfds/")
        allowed = f"true only with source {', '.join(DOWNLOADED)} and timm's hfds/"
        require(can, "download", self.download, allowed)
        # Batches need images in any order.
        cached = self.cache.enabled or not self.streamed
        require(cached, "cache", self.cache.enabled, "enabled: true with name wds/")

    @property
    def streamed(self) -> bool:
        """Whether images can be read from end to end alone."""
        return self.name.startswith("wds/")


DataSettings = DigitsSettings | ImagesSettings
