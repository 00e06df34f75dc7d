"""Subsets of the images, and their stratified assignment to the four parts, by seed."""

import difflib
import random
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from octnas.data.cache import Found
from octnas.data.image_list import SKIPPED, Entry
from octnas.data.settings import ImagesSettings, SubsetSettings
from octnas.data.sources import SPLITS, Listing, Problem
from octnas.errors import DataError


def choose_subset(listing: Listing, subset: SubsetSettings, seed: int) -> Listing:
    """The images of a subset; the val split is reduced by class only.

    A class's draw depends on its name and images and the seed, not on other classes; a smaller
    subset is part of a larger one.

    Raises:
        DataError: an unknown class, or more classes than there are.
    """
    classes = _choose_classes(listing, subset, seed)
    label_of = {name: label for label, name in enumerate(classes)}
    names: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[int, ...]] = {}
    for split in SPLITS:
        by_class: dict[str, list[str]] = {name: [] for name in classes}
        for name, label in zip(listing.names[split], listing.labels[split], strict=True):
            if (class_name := listing.classes[label]) in by_class:
                by_class[class_name].append(name)
        if split == "train":
            by_class = {c: _draw(found, subset, f"{seed}/{c}") for c, found in by_class.items()}
        # In the order of the source, in which shards are read.
        drawn = {name: label_of[c] for c, found in by_class.items() for name in found}
        names[split] = tuple(name for name in listing.names[split] if name in drawn)
        labels[split] = tuple(drawn[name] for name in names[split])
    # Ignore problems of classes outside the subset.
    problems = tuple(
        problem
        for problem in listing.problems
        if not subset.classes
        or "/" not in problem.name
        or any(problem.concerns(name) for name in subset.classes)
    )
    return Listing(tuple(classes), names, labels, problems)


def _choose_classes(listing: Listing, subset: SubsetSettings, seed: int) -> list[str]:
    classes = listing.classes
    for name in subset.classes:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            reasons = [problem.reason for problem in listing.problems if problem.concerns(name)]
            raise DataError(
                f"data.subset.classes: found {name!r} ({', '.join(reasons) or 'unknown'}), "
                f"allowed: the {len(classes)} usable classes, such as {classes[0]!r}{hint}"
            )
    allowed = [name for name in classes if not subset.classes or name in subset.classes]
    count = subset.class_count or len(allowed)
    if count > len(allowed):
        raise DataError(
            f"data.subset.class_count: found {count}, allowed: at most the {len(allowed)} classes"
        )
    drawn = set(_shuffled(allowed, f"{seed}/classes")[:count])
    return [name for name in allowed if name in drawn]


def _draw(found: Sequence[str], subset: SubsetSettings, seed: str) -> list[str]:
    count = max(1, round(subset.fraction * len(found))) if found else 0
    if subset.images_per_class:
        count = min(count, subset.images_per_class)
    if count == len(found):
        return list(found)
    drawn = set(_shuffled(found, seed)[:count])
    return [name for name in found if name in drawn]


def _shuffled(names: Iterable[str], seed: str) -> list[str]:
    ordered = sorted(names)
    random.Random(seed).shuffle(ordered)  # noqa: S311  not for secrets
    return ordered


def cut(
    names: Sequence[str],
    labels: Sequence[int],
    digests: Sequence[str],
    val_digests: Iterable[str],
    settings: ImagesSettings,
) -> list[str]:
    """The part of each usable training image: ``train``, ``search_val``, ``read``, or ``copy``.

    A ``copy`` has the pixels of a val image and is left out. Duplicates within the training images
    all go to ``train``, so that no two parts share an image.

    Raises:
        DataError: a class with too few images.
    """
    val = set(val_digests)
    times: Mapping[str, int] = Counter(digests)
    parts = {
        name: "copy" if digest in val else "train"
        for name, digest in zip(names, digests, strict=True)
    }
    single: dict[int, list[str]] = {}
    for name, label, digest in zip(names, labels, digests, strict=True):
        if parts[name] == "train":
            of_class = single.setdefault(label, [])
            if times[digest] == 1:
                of_class.append(name)
    search_val, read = settings.search_val_per_class, settings.read_per_class
    kept = Counter(
        label for name, label in zip(names, labels, strict=True) if parts[name] != "copy"
    )
    for label in sorted(set(labels)):
        images = single.get(label, [])
        if len(images) < search_val + read or kept[label] <= search_val + read:
            example = names[list(labels).index(label)]
            raise DataError(
                f"class of {example}: found {len(images)} training images without copies, "
                "allowed: more than data.search_val_per_class + data.read_per_class = "
                f"{search_val + read}"
            )
        drawn = _shuffled(images, f"{settings.seed}/cut/{label}")
        parts |= dict.fromkeys(drawn[:search_val], "search_val")
        parts |= dict.fromkeys(drawn[search_val : search_val + read], "read")
    return [parts[name] for name in names]


# The label of an image whose class is left out.
_NONE = -1


def broken_classes(listing: Listing, found: Sequence[Found]) -> tuple[Problem, ...]:
    """Classes without any usable image in a split; results are in the order of the splits."""
    entries = [(split, label) for split in SPLITS for label in listing.labels[split]]
    usable = {entry for entry, one in zip(entries, found, strict=True) if not one.reason}
    return tuple(
        Problem(name, f"a class of which no {split} image can be used")
        for label, name in enumerate(listing.classes)
        for split in SPLITS
        if (split, label) not in usable
    )


def sort_out(
    settings: ImagesSettings,
    listing: Listing,
    found: Sequence[Found],
    left_out: Container[str],
) -> tuple[tuple[str, ...], tuple[Entry, ...]]:
    """The classes that are used, and the part of every image.

    Results are in the order of the splits; all images of the classes in ``left_out`` are skipped.

    Raises:
        DataError: there is no usable class, or one has too few images.
    """
    classes = tuple(name for name in listing.classes if name not in left_out)
    if not classes:
        raise DataError(f"{settings.root}: no class has images in both splits that can be used")
    numbers = {name: number for number, name in enumerate(classes)}
    names = [name for split in SPLITS for name in listing.names[split]]
    labels = [
        numbers.get(listing.classes[label], _NONE)
        for split in SPLITS
        for label in listing.labels[split]
    ]
    train = len(listing.names["train"])
    used = [
        index
        for index, (label, one) in enumerate(zip(labels, found, strict=True))
        if label != _NONE and not one.reason
    ]
    of_train = [index for index in used if index < train]
    cuts = cut(
        [names[index] for index in of_train],
        [labels[index] for index in of_train],
        [found[index].digest for index in of_train],
        [found[index].digest for index in used if index >= train],
        settings,
    )
    parts = dict.fromkeys(used, "val") | dict(zip(of_train, cuts, strict=True))
    return classes, tuple(
        Entry(parts.get(index, SKIPPED), labels[index], one.digest, name)
        for index, (name, one) in enumerate(zip(names, found, strict=True))
    )
