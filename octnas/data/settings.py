"""Settings of the data, importable without torch."""

from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Literal, get_args

from octnas.errors import require, require_at_least, require_seed
from octnas.io.files import expand_home
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


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Section ``data`` with ``source: digits``: cluttered digits, without a download.

    The images are made from scikit-learn's handwritten digits.

    Attributes:
        source: ``digits``.
        train_images, search_val_images, read_images, val_images: sizes of the four parts, which
            come from disjoint source digits: weights learn on train, candidates are ranked on
            search_val, chosen ones are measured on read, retrained networks on val.
        seed: random seed of the images; separate from the experiment's, so that runs with different
            seeds share the data.
        padding: maximum random shift of training images, in pixels.
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
    """Subset of the images; random choices depend on ``data.seed``.

    Attributes:
        classes: names of classes; empty for all.
        class_count: number of classes to draw from these; 0 for all.
        images_per_class: maximum training images per class; 0 for all.
        fraction: share of each class's training images to draw from, before ``images_per_class``.
    """

    classes: tuple[str, ...] = ()
    class_count: int = 0
    images_per_class: int = 0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        distinct = len(set(self.classes)) == len(self.classes)
        require(distinct, "classes", self.classes, "every class once")
        require_at_least(self, 0, "class_count", "images_per_class")
        require(0 < self.fraction <= 1, "fraction", self.fraction, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How training images are augmented, each by random numbers of its own.

    Crops are resized with antialiasing, as in evaluation. The cache changes nothing but the images
    that are cropped, see `CacheSettings`.

    Attributes:
        scale: smallest share of an image's area that a crop keeps.
        hflip: probability of a horizontal flip.
        color_jitter: largest relative change of brightness, contrast and saturation.
        rand_augment: operations of RandAugment per image (arXiv 1909.13719), before color_jitter;
            0 for none.
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

    Of an image the central square is kept, at this resolution. So training crops show nothing
    beyond it, and small crops fewer details than those of a large file. Networks at larger test
    sizes get their images from the files.

    Attributes:
        enabled: whether to make and use a cache.
        resolution: side of the squares; 0 for what evaluation resizes images to.
        folder: of the caches, on every node; by default ``~/.cache/octnas``.
    """

    enabled: bool = False
    resolution: int = 0
    folder: str = field(default="", metadata=HOW)

    def __post_init__(self) -> None:
        require_at_least(self, 0, "resolution")


@dataclass(frozen=True, kw_only=True)
class ImagesSettings:
    """Section ``data``: images from a folder, or a data set that torchvision or timm can read.

    Attributes:
        source: ``folder`` (ImageFolder layout: ``train/CLASS`` and ``val/CLASS``); torchvision's
            ``imagenet``, ``imagenette``, ``cifar10`` and ``cifar100``; or ``timm`` (shards, read by
            timm).
        root: folder of the data. With ``hfds/``, use a local disk: the library copies the data
            there under file locks.
        name: timm data set, with ``source: timm``: ``wds/`` or ``hfds/PATH``.
        train, val: names of the two splits; with ``source: folder``, of the folders below ``root``.
        download: whether missing data may be downloaded.
        search_val_per_class, read_per_class: training images of each class that are held out, drawn
            by ``seed``: candidates are ranked on search_val, chosen ones are measured on read.
        seed: random seed of that draw and of the subset.
        on_error: ``fail`` if an image or class cannot be used, or ``skip`` it.
        subset: which images to use.
        augment: augmentation of training images.
        crop_pct: share of the side that the centre crop keeps in evaluation.
        mean, std: mean and standard deviation of the pixel values, for normalisation.
        cache: cache of decoded images.
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
        # `min` would ignore NaN.
        above = all(0 < value < inf for value in self.std)
        require(above, "std", self.std, "finite numbers above 0")
        require_at_least(self, 0, "workers")
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
        """Whether images can only be read in order."""
        return self.name.startswith("wds/")


CACHE = "~/.cache/octnas"
"""Default folder of image caches."""


def cache_folder(settings: ImagesSettings) -> Path:
    """The folder with the caches of this node.

    Raises:
        ConfigError: it starts with ``~``, and the user has no home directory.
    """
    folder = settings.cache.folder or CACHE
    return expand_home(folder, "data.cache.folder").absolute()


DataSettings = DigitsSettings | ImagesSettings
