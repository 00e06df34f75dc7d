"""Images in ImageFolder layout, read by torchvision, and what of it cannot be read."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from torchvision import datasets

from octnas.data.listing import Listing, Problem
from octnas.errors import DataError


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
        strange = dict(_strange(root / folder))
        problems += [
            Problem(path.relative_to(root).as_posix(), reason) for path, reason in strange.items()
        ]
        if not any(entry.is_dir() for entry in (root / folder).iterdir()):
            raise DataError(f"{root / folder}: holds no folders of classes")
        files[split] = _files_by_class(root, folder, strange.keys())
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


def _files_by_class(root: Path, folder: str, strange: Set[Path]) -> dict[str, list[str]]:
    """Names below the root of a split's images, by class; classes without any are kept."""
    if strange:
        # torchvision would follow loops as deep as the file system lets it.
        found = _walk_without(root / folder, strange)
    else:
        data = datasets.ImageFolder(str(root / folder), allow_empty=True)
        found = {name: [] for name in data.classes}
        for path, label in data.samples:
            found[data.classes[label]].append(path)
    return {
        name: [Path(path).relative_to(root).as_posix() for path in paths]
        for name, paths in found.items()
    }


def _walk_without(folder: Path, strange: Set[Path]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    extensions = datasets.folder.IMG_EXTENSIONS
    for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        paths = found.setdefault(entry.name, [])
        if entry in strange:
            continue
        for here, below, names in os.walk(entry, followlinks=True):
            below[:] = sorted(name for name in below if Path(here) / name not in strange)
            files = [Path(here) / n for n in sorted(names) if n.lower().endswith(extensions)]
            paths += [str(path) for path in files if path not in strange]
    return found


def _strange(folder: Path) -> Iterator[tuple[Path, str]]:
    """What below a folder cannot be walked through, with the reasons.

    A folder is walked through once: links among classes would give their images wrong labels, and
    some links among some folders make more paths than anyone has time for.
    """
    seen: set[str] = set()
    links = deque([folder])
    while links:
        place = links.popleft()
        real = os.path.realpath(place)
        if place != folder and Path(os.path.realpath(place.parent)).is_relative_to(real):
            yield place, "a symbolic link to a folder around it"
        elif real in seen:
            yield place, "a symbolic link to a folder that is there already"
        else:
            yield from _walk_once(place, seen, links)


def _walk_once(place: Path, seen: set[str], links: deque[Path]) -> Iterator[tuple[Path, str]]:
    """What cannot be read below a folder; notes the folders there, and the links to others."""
    waiting = [place]
    while waiting:
        here = waiting.pop()
        seen.add(os.path.realpath(here))
        try:
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    try:
                        if entry.is_dir():
                            (links if entry.is_symlink() else waiting).append(Path(entry.path))
                    except OSError as error:
                        # A link to itself.
                        yield Path(entry.path), str(error.strerror)
        except OSError as error:
            yield here, str(error.strerror)
