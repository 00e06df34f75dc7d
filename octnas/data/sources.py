"""What lies on disk: the images of both splits by name, and how to open one of them."""

import logging
import os
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

from octnas.data.decode import BrokenImageError, read_rgb
from octnas.data.settings import ImagesSettings
from octnas.errors import DataError

SPLITS = ("train", "val")
# Where torchvision puts Imagenette below its root.
_IMAGENETTE = "imagenette2"


@dataclass(frozen=True)
class Problem:
    """Something that cannot be used.

    Attributes:
        name: of the image or folder, below the data's root.
        reason: in words.
    """

    name: str
    reason: str

    @property
    def folder(self) -> str | None:
        """The class that it is about, if the name is that of a folder or file of a class."""
        parts = self.name.split("/")
        return parts[1] if len(parts) > 1 else None


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


class Reader(Protocol):
    """Opens images by name; picklable, so that every process can have its own."""

    def read(self, name: str) -> Image.Image:
        """An RGB image.

        Raises:
            BrokenImageError: it cannot be used.
        """
        ...

    def stamp(self, name: str) -> str:
        """What changes when the image on disk does, as far as that is known without reading it."""
        ...


@dataclass(frozen=True)
class FileReader:
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
class IndexReader:
    """A data set of torchvision or timm whose images are known by their number."""

    settings: ImagesSettings

    def read(self, name: str) -> Image.Image:
        """See `Reader.read`."""
        split, index = name.split("/")
        data = open_dataset(self.settings, split)
        # timm's own indexing would put the next image in the place of a broken one.
        source = data.reader[int(index)][0] if self.settings.name else data[int(index)][0]
        return read_rgb(source)

    def stamp(self, name: str) -> str:  # noqa: ARG002  all are in one file
        """See `Reader.stamp`."""
        return ""


@dataclass(frozen=True)
class StreamReader:
    """Shards, which timm reads from end to end."""

    settings: ImagesSettings

    def read(self, name: str) -> Image.Image:
        """Not possible."""
        raise BrokenImageError(f"{name}: shards are read from end to end")

    def stamp(self, name: str) -> str:  # noqa: ARG002  all are in a few files
        """See `Reader.stamp`."""
        return ""

    def stream(self, split: str) -> Iterator[tuple[str, Image.Image]]:
        """All images of a split that timm can read, with their names, in order."""
        for index, (image, _) in enumerate(open_dataset(self.settings, split)):
            yield f"{split}/{index}", image


def open_reader(settings: ImagesSettings) -> FileReader | IndexReader | StreamReader:
    """What opens the images of a source."""
    if settings.source in ("folder", "imagenet", "imagenette"):
        return FileReader(Path(settings.root))
    return StreamReader(settings) if settings.name.startswith("wds/") else IndexReader(settings)


def list_images(settings: ImagesSettings) -> Listing:
    """All images of a source, without opening them.

    Raises:
        DataError: the data cannot be found, or lacks a library to read it.
    """
    root = Path(settings.root)
    if not settings.root or not (root.is_dir() or settings.download):
        raise DataError(
            f"data.root: found {settings.root!r}, which is no folder; "
            "set it to where the data lies, such as --set data.root=PATH"
        )
    if settings.source == "folder":
        return _list_folders(root, {"train": settings.train, "val": settings.val})
    if settings.source == "imagenette":
        with _explained(settings):
            for split in SPLITS:
                open_dataset(settings, split)
        return _list_folders(root, {split: f"{_IMAGENETTE}/{split}" for split in SPLITS})
    if settings.source == "imagenet":
        with _explained(settings):
            found = {split: open_dataset(settings, split) for split in SPLITS}
        # Class names are tuples of synonyms; the folders are named by WordNet's numbers.
        return _list_folders(
            root, {split: Path(found[split].split_folder).name for split in SPLITS}
        )
    with _explained(settings):
        return _list_indexed(settings)


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
        hint = "" if settings.download else "; nothing is downloaded without data.download"
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
    if settings.name.startswith("wds/"):
        logging.getLogger("timm.data.readers.reader_wds").setLevel(logging.ERROR)
        return create_dataset("wds/", root, name, input_img_mode="")
    return create_dataset(settings.name, root, name, input_img_mode="")


def _list_indexed(settings: ImagesSettings) -> Listing:
    names, labels, problems = {}, {}, []
    classes: dict[int, str] = {}
    for split in SPLITS:
        data = open_dataset(settings, split)
        if settings.name.startswith("wds/"):
            found = [label for _, label in data]
            if lost := max(data.reader.num_samples - len(found), 0):
                reason = f"{lost} of {data.reader.num_samples} images cannot be read"
                problems.append(Problem(split, reason))
        else:
            found = list(data.reader.iter_targets() if settings.name else data.targets)
        index = (data.reader if settings.name else data).class_to_idx
        classes |= {number: name for name, number in index.items()}
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


def _list_folders(root: Path, folders: Mapping[str, str]) -> Listing:
    """The images of the classes that both folders have."""
    problems: list[Problem] = []
    files: dict[str, dict[str, list[str]]] = {}
    for split, folder in folders.items():
        if not (root / folder).is_dir():
            raise DataError(
                f"data.root: found {str(root)!r} without a folder {folder!r}; set it to a folder "
                "in ImageFolder layout, or name its folders by data.train and data.val"
            )
        loops = list(_loops(root / folder))
        problems += [
            Problem(loop.relative_to(root).as_posix(), "a symbolic link to a folder around it")
            for loop in loops
        ]
        if not any(entry.is_dir() for entry in (root / folder).iterdir()):
            raise DataError(f"{root / folder}: holds no folders of classes")
        files[split] = _files_by_class(root, folder, loops)
        problems += [
            Problem(f"{folder}/{name}", "a class without images")
            for name, found in files[split].items()
            if not found
        ]
    for split, other in (("train", "val"), ("val", "train")):
        problems += [
            Problem(f"{folders[split]}/{name}", f"a class that {folders[other]} does not have")
            for name in sorted(files[split].keys() - files[other].keys())
            if files[split][name]
        ]
    usable = [
        name for name in files["train"] if files["train"][name] and files["val"].get(name, [])
    ]
    if not usable:
        raise DataError(
            f"{root}: {folders['train']} and {folders['val']} have no class with images in both"
        )
    pairs = {
        split: [(name, label) for label, c in enumerate(usable) for name in files[split][c]]
        for split in folders
    }
    return Listing(
        tuple(usable),
        {split: tuple(name for name, _ in found) for split, found in pairs.items()},
        {split: tuple(label for _, label in found) for split, found in pairs.items()},
        tuple(problems),
    )


def _files_by_class(root: Path, folder: str, loops: list[Path]) -> dict[str, list[str]]:
    """Names below the root of a split's images, by class; classes without any are kept."""
    if loops:
        # torchvision would follow them as deep as the file system lets it.
        found = _walk_without(root / folder, loops)
    else:
        data = datasets.ImageFolder(str(root / folder), allow_empty=True)
        found = {name: [] for name in data.classes}
        for path, label in data.samples:
            found[data.classes[label]].append(path)
    return {
        name: [Path(path).relative_to(root).as_posix() for path in paths]
        for name, paths in found.items()
    }


def _walk_without(folder: Path, loops: list[Path]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    extensions = datasets.folder.IMG_EXTENSIONS
    for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        paths = found.setdefault(entry.name, [])
        if entry in loops:
            continue
        for here, below, names in os.walk(entry, followlinks=True):
            below[:] = sorted(name for name in below if Path(here) / name not in loops)
            paths += [str(Path(here) / n) for n in sorted(names) if n.lower().endswith(extensions)]
    return found


def _loops(folder: Path) -> Iterator[Path]:
    """Links below a folder that lead to a folder around them."""

    def search(here: Path, around: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(here)
        if real in around:
            yield here
            return
        with os.scandir(here) as entries:
            below = [Path(entry.path) for entry in entries if entry.is_dir()]
        for path in below:
            yield from search(path, around | {real})

    yield from search(folder, frozenset())
