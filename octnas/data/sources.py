"""Sources of images: the images of both splits by name, and how to open one of them."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from timm.data import create_dataset
from torchvision import datasets

from octnas.data.decode import BrokenImageError, broken, read_rgb
from octnas.data.settings import DOWNLOADED, ImagesSettings
from octnas.errors import DataError

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Problem:
    """An image or folder that cannot be used, by its name below the data's root."""

    name: str
    reason: str

    def concerns(self, folder: str) -> bool:
        """Whether it is about a folder or something in it."""
        return folder in self.name.split("/")


@dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        classes: their names, by label.
        names: of the images, by split; each is unique.
        labels: of the images, by split.
        problems: folders that cannot be used; their images are left out.
    """

    classes: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[int, ...]]
    problems: tuple[Problem, ...] = ()


def list_folders(root: Path, folders: Mapping[str, str]) -> Listing:
    """The images of the classes that both folders have; names are below the root."""
    problems: list[Problem] = []
    files: dict[str, dict[str, list[str]]] = {}
    for split, folder in folders.items():
        if Path(folder).is_absolute() or not (root / folder).is_dir():
            raise DataError(
                f"data.root: found {str(root)!r} without a folder {folder!r}; set it to a folder "
                "in ImageFolder layout, or name its folders by data.train and data.val"
            )
        classes = sorted(entry.name for entry in (root / folder).iterdir() if entry.is_dir())
        if not classes:
            raise DataError(f"{root / folder}: holds no folders of classes")
        found, unusable = _walk(root, Path(folder).as_posix())
        files[split] = {name: found.get(name, []) for name in classes}
        problems += unusable
        problems += [
            Problem(f"{folder}/{name}", "a class without images")
            for name in classes
            if name not in found
        ]
    for split, other in (("train", "val"), ("val", "train")):
        problems += [
            Problem(f"{folders[split]}/{name}", f"a class that {folders[other]} does not have")
            for name in sorted(files[split].keys() - files[other].keys())
            if files[split][name]
        ]
    usable = [name for name in files["train"] if files["train"][name] and files["val"].get(name)]
    if not usable:
        raise DataError(
            f"{root}: {folders['train']} and {folders['val']} have no class with images in both"
        )
    return Listing(
        tuple(usable),
        {split: tuple(chain(*(files[split][name] for name in usable))) for split in folders},
        {
            split: tuple(label for label, name in enumerate(usable) for _ in files[split][name])
            for split in folders
        },
        tuple(problems),
    )


def _walk(root: Path, top: str) -> tuple[dict[str, list[str]], list[Problem]]:
    """Names of a split's images by class, in torchvision's order, and what cannot be walked.

    Each folder is walked once, links after all others: links among classes would give their images
    wrong labels, and nested links can make exponentially many paths.
    """
    files: list[tuple[str, str]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    waiting, links = [top], deque[str]()
    while waiting or links:
        linked = not waiting
        here = links.popleft() if linked else waiting.pop()
        real = os.path.realpath(root / here)
        if linked and Path(os.path.realpath((root / here).parent)).is_relative_to(real):
            problems.append(Problem(here, "a symbolic link to a parent folder"))
            continue
        if linked and real in seen:
            problems.append(Problem(here, "a symbolic link to a folder that is already included"))
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(root / here), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(Problem(here, str(error.strerror)))
            continue
        for entry in entries:
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(f"{here}/{entry.name}")
                elif here != top and entry.name.lower().endswith(datasets.folder.IMG_EXTENSIONS):
                    files.append((here, entry.name))
            except OSError as error:
                # A link to itself.
                problems.append(Problem(f"{here}/{entry.name}", str(error.strerror)))
    found: dict[str, list[str]] = {}
    for folder, name in sorted(files):
        class_name = folder[len(top) + 1 :].split("/")[0]
        found.setdefault(class_name, []).append(f"{folder}/{name}")
    return found, problems


# Where torchvision puts Imagenette below its root.
_IMAGENETTE = "imagenette2"
# Where datasets puts the Arrow files that it makes of local shards; it reads no hidden folders.
_COPIES = ".huggingface"


class Reader(Protocol):
    """Opens images by name; picklable, so that every process can have its own."""

    def read(self, name: str) -> Image.Image:
        """An RGB image.

        Raises:
            BrokenImageError: it cannot be used.
        """
        ...

    def stamp(self, name: str) -> str:  # noqa: ARG002
        """A text that changes with the image on disk, as far as known without reading it."""
        return ""


@dataclass(frozen=True)
class FileReader(Reader):
    """Files below a folder."""

    root: Path

    def read(self, name: str) -> Image.Image:
        """See `Reader.read`."""
        return read_rgb(self.root / name)

    def stamp(self, name: str) -> str:
        """See `Reader.stamp`."""
        try:
            status = (self.root / name).stat()
        except OSError:
            return "unreadable"
        return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class IndexReader(Reader):
    """A data set of torchvision or timm whose images are known by their number."""

    settings: ImagesSettings

    def read(self, name: str) -> Image.Image:
        """See `Reader.read`."""
        split, index = name.split("/")
        data = open_dataset(self.settings, split)
        try:
            # timm's own indexing would replace a broken image by the next one.
            source = data.reader[int(index)][0] if self.settings.name else data[int(index)][0]
        except Exception as error:
            # A row without an image, or a missing file.
            raise broken(error) from error
        return read_rgb(source)


@dataclass(frozen=True)
class StreamReader(Reader):
    """Shards, which timm reads in order."""

    settings: ImagesSettings

    def read(self, name: str) -> Image.Image:
        """Not possible."""
        raise BrokenImageError(f"{name}: shards are read in order")

    def stream(self, split: str) -> Iterator[tuple[str, Image.Image]]:
        """All images of a split that timm can read, with their names, in order."""
        for index, (image, _) in enumerate(open_dataset(self.settings, split)):
            yield f"{split}/{index}", image


def open_reader(settings: ImagesSettings) -> FileReader | IndexReader | StreamReader:
    """What opens the images of a source."""
    if _folders(settings) is not None:
        return FileReader(Path(settings.root))
    return StreamReader(settings) if settings.streamed else IndexReader(settings)


def list_images(settings: ImagesSettings) -> Listing:
    """All images of a source, without opening them.

    Raises:
        DataError: the data cannot be found, or lacks a library to read it.
    """
    root = Path(settings.root)
    if not settings.root or not (root.is_dir() or settings.download):
        raise DataError(
            f"data.root: found {settings.root!r}, which is not a folder; "
            "set it to the folder of the data, such as --set data.root=PATH"
        )
    folders = _folders(settings)
    with _explained(settings):
        if folders is None:
            return _list_indexed(settings)
        for split, folder in folders.items():
            # torchvision unpacks or downloads missing data. It would refuse existing data with an
            # additional or an empty folder.
            if settings.source != "folder" and not (root / folder).is_dir():
                open_dataset(settings, split)
        return list_folders(root, folders)


def _folders(settings: ImagesSettings) -> dict[str, str] | None:
    """Folders in ImageFolder layout below the root, by split; None for a source of another kind."""
    if settings.source == "folder":
        return {"train": settings.train, "val": settings.val}
    below = {"imagenet": "", "imagenette": f"{_IMAGENETTE}/"}.get(settings.source)
    return None if below is None else {split: f"{below}{split}" for split in SPLITS}


@contextmanager
def _explained(settings: ImagesSettings) -> Iterator[None]:
    """Turn what torchvision and timm raise for missing data into one clear error."""
    kind, _, path = settings.name.partition("/")
    library = {"hfds": "datasets", "wds": "webdataset"}.get(kind)
    if library is not None and find_spec(library) is None:
        raise DataError(f'data.name: {kind}/ needs {library}: pip install "octnas[shards]"')
    if kind == "hfds" and not settings.download and not Path(path).is_dir():
        raise DataError(
            f"data.name: found no folder {path!r}; allowed: hfds/PATH with parquet files in a "
            "folder PATH, or a name on the Hugging Face hub with data.download=true"
        )
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Whatever those libraries raise: also assertions, and errors of their own.
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        asked = settings.download or settings.source not in DOWNLOADED
        hint = "" if asked else "; nothing is downloaded without data.download"
        raise DataError(
            f"data: {settings.name or settings.source} cannot be read from {settings.root} "
            f"({reason}){hint}"
        ) from error


@cache
def open_dataset(settings: ImagesSettings, split: str) -> Any:
    """The data set of torchvision or timm that holds a split; opened once in every process."""
    root, train = settings.root, split == "train"
    if settings.source == "imagenet":
        return datasets.ImageNet(root, split)
    if settings.source == "imagenette":
        return datasets.Imagenette(root, split, download=settings.download)
    if settings.source in ("cifar10", "cifar100"):
        kind = datasets.CIFAR10 if settings.source == "cifar10" else datasets.CIFAR100
        return kind(root, train, download=settings.download)
    name = settings.train if train else settings.val
    if settings.streamed:
        logging.getLogger("timm.data.readers.reader_wds").setLevel(logging.ERROR)
        data = create_dataset("wds/", root, name, input_img_mode="")
        # Else each process of a training would see only its own shards.
        data.reader.dist_rank, data.reader.dist_num_replicas = 0, 1
        return data
    if Path(settings.name.removeprefix("hfds/")).is_dir():
        # Copies are made below the root, and must not be taken for shards themselves.
        root = str(Path(root, _COPIES))
    return create_dataset(settings.name, root, name, input_img_mode="")


def stamp_shards(settings: ImagesSettings) -> str:
    """What changes when shards on disk do; empty for other sources."""
    stamps: list[str] = []
    for split in SPLITS if settings.name else ():
        reader = open_dataset(settings, split).reader
        if settings.streamed:
            files = FileReader(Path(settings.root))
            stamps += [f"{name} {files.stamp(name)}" for name in reader.split_info.filenames]
        else:
            # Names made of the sizes and times of what was read.
            stamps += [str(file["filename"]) for file in reader.dataset.cache_files]
    return "\n".join(stamps)


def _list_indexed(settings: ImagesSettings) -> Listing:
    names, labels, problems = {}, {}, []
    classes: dict[int, str] = {}
    for split in SPLITS:
        data = open_dataset(settings, split)
        if settings.streamed:
            found = [label for _, label in data]
            if lost := max(data.reader.num_samples - len(found), 0):
                # One for each image, since reports count them; timm does not name them.
                among = f"of {lost} that cannot be read, among {data.reader.num_samples}"
                problems += [Problem(split, f"image {n} {among}") for n in range(1, lost + 1)]
        else:
            found = list(data.reader.iter_targets() if settings.name else data.targets)
        index = (data.reader if settings.name else data).class_to_idx
        classes |= {number: name for name, number in index.items()}
        if any(label < 0 for label in found):
            raise DataError(f"{settings.root}: split {split} has images without a label")
        names[split] = tuple(f"{split}/{number}" for number in range(len(found)))
        labels[split] = tuple(found)
    count = 1 + max(chain([-1], classes, *labels.values()))
    if not count:
        raise DataError(f"{settings.root}: holds no images")
    return Listing(
        tuple(classes.get(number, str(number)) for number in range(count)),
        names,
        labels,
        tuple(problems),
    )
