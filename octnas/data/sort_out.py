"""What every image is for, once all have been looked at."""

from collections.abc import Container, Sequence

from octnas.data.cache import Found
from octnas.data.choose import cut
from octnas.data.image_list import SKIPPED, Entry
from octnas.data.listing import SPLITS, Listing, Problem
from octnas.data.settings import ImagesSettings
from octnas.errors import DataError

# The label of an image whose class is left out.
_NONE = -1


def broken_classes(listing: Listing, found: Sequence[Found]) -> tuple[Problem, ...]:
    """Classes of which a split has no image that can be used; named as the listing names them.

    Args:
        listing: the images.
        found: what is known of each, in the order of the splits.
    """
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
    """The classes that are used, and what every image is for.

    Args:
        settings: of the cuts.
        listing: the images.
        found: what is known of each, in the order of the splits.
        left_out: classes whose images are all skipped.

    Raises:
        DataError: no class is left, or one with too few images.
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
