"""Subsets and cuts: disjoint, stratified, by seed."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from octnas.data.settings import ImagesSettings, SubsetSettings
from octnas.data.sources import Listing, Problem
from octnas.data.splits import choose_subset, cut
from octnas.errors import DataError

SIZES = st.lists(st.integers(6, 20), min_size=1, max_size=4)


def listing_of(sizes: list[int]) -> Listing:
    names = tuple(f"train/{c}/{i}" for c, size in enumerate(sizes) for i in range(size))
    labels = tuple(c for c, size in enumerate(sizes) for _ in range(size))
    val = tuple(f"val/{c}/0" for c in range(len(sizes)))
    classes = tuple(f"class{c}" for c in range(len(sizes)))
    by_split = {"train": labels, "val": tuple(range(len(sizes)))}
    return Listing(classes, {"train": names, "val": val}, by_split)


@given(SIZES, st.integers(1, 3), st.integers(1, 2), st.integers(0, 5))
def test_cuts_are_stratified_disjoint_and_whole(
    sizes: list[int], rank: int, read: int, seed: int
) -> None:
    listing = listing_of(sizes)
    names, labels = listing.names["train"], listing.labels["train"]
    settings = ImagesSettings(root="/x", search_val_per_class=rank, read_per_class=read, seed=seed)
    parts = cut(names, labels, names, (), settings)
    counts = Counter(zip(labels, parts, strict=True))
    for label, size in enumerate(sizes):
        assert counts[label, "search_val"] == rank
        assert counts[label, "read"] == read
        assert counts[label, "train"] == size - rank - read
    # The order in which a file system lists files does not matter.
    backwards = cut(names[::-1], labels[::-1], names[::-1], (), settings)
    assert backwards[::-1] == parts


@given(st.lists(st.integers(0, 30), min_size=30, max_size=30), st.integers(0, 5))
def test_no_two_parts_share_pixels(digests: list[int], seed: int) -> None:
    """Thirty images of which many are copies of each other, and some of val images."""
    names = [f"train/{i}" for i in range(len(digests))]
    found = [str(digest) for digest in digests]
    val = {"3", "7"}
    settings = ImagesSettings(root="/x", search_val_per_class=1, read_per_class=1, seed=seed)
    times = Counter(found)
    assume(sum(times[d] == 1 and d not in val for d in found) >= 2)
    assume(sum(d not in val for d in found) > 2)
    parts = cut(names, [0] * len(names), found, val, settings)
    by_part = {part: {d for d, p in zip(found, parts, strict=True) if p == part} for part in parts}
    assert by_part.get("copy", set()) == val & set(found)
    kept = [by_part[part] for part in ("train", "search_val", "read") if part in by_part]
    assert not any(a & b for i, a in enumerate(kept) for b in kept[i + 1 :])
    assert not any(part & val for part in kept)


def test_too_few_images() -> None:
    settings = ImagesSettings(root="/x", search_val_per_class=2, read_per_class=1)
    with pytest.raises(DataError, match="found 3 training images without copies, allowed: more"):
        cut(["a", "b", "c"], [0, 0, 0], ["1", "2", "3"], (), settings)


@given(SIZES, st.integers(1, 5), st.integers(0, 3))
def test_a_smaller_subset_is_part_of_a_larger_one(sizes: list[int], count: int, seed: int) -> None:
    listing = listing_of(sizes)
    few, more = (
        choose_subset(listing, SubsetSettings(images_per_class=n), seed) for n in (count, count + 1)
    )
    assert set(few.names["train"]) < set(more.names["train"])
    assert Counter(few.labels["train"]) == dict.fromkeys(range(len(sizes)), count)
    assert few.names["val"] == listing.names["val"]
    half = choose_subset(listing, SubsetSettings(fraction=0.5), seed)
    assert Counter(half.labels["train"]) == {c: round(n / 2) for c, n in enumerate(sizes)}


def test_classes_by_name_and_by_number() -> None:
    listing = listing_of([6, 7, 8])
    chosen = choose_subset(listing, SubsetSettings(classes=("class2", "class0")), 0)
    assert chosen.classes == ("class0", "class2")
    assert Counter(chosen.labels["train"]) == {0: 6, 1: 8}
    one, two = (choose_subset(listing, SubsetSettings(class_count=n), 4).classes for n in (1, 2))
    assert set(one) < set(two)


def test_classes_that_are_not_there() -> None:
    listing = replace(
        listing_of([6, 7]),
        problems=(
            Problem("train/empty", "a class without images"),
            Problem("val/x/loop", "a loop"),
        ),
    )
    with pytest.raises(DataError, match=r"found 'class9' .unknown.* did you mean 'class"):
        choose_subset(listing, SubsetSettings(classes=("class9",)), 0)
    with pytest.raises(DataError, match=r"found 'empty' .a class without images"):
        choose_subset(listing, SubsetSettings(classes=("empty",)), 0)
    with pytest.raises(DataError, match="class_count: found 3, allowed: at most the 2"):
        choose_subset(listing, SubsetSettings(class_count=3), 0)
    # What is wrong with classes that nobody asked for does not matter.
    assert choose_subset(listing, SubsetSettings(classes=("class1",)), 0).problems == ()
    assert len(choose_subset(listing, SubsetSettings(), 0).problems) == 2
