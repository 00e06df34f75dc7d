"""The list of images: what is written is what is read."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.data import image_list as module
from octnas.data.image_list import (
    ABOUT_FILE,
    LIST_FILE,
    Entry,
    ImageList,
    read_images,
    read_summary,
    write_images,
)
from octnas.data.sources import Problem
from octnas.errors import RunDirectoryError

ENTRIES = (
    Entry("train", 0, "aa", "train/x/1.png"),
    Entry("search_val", 1, "bb", "train/y/1.png"),
    Entry("skipped", 1, "", "train/y/2.png"),
    Entry("val", 1, "cc", "val/y/1.png"),
)
IMAGES = ImageList(("x", "y"), ENTRIES, (Problem("train/y/2.png", "cut off"),), "key", 8, 8)
# What os.fsdecode makes of bytes: any character, and surrogates for what is no UTF-8.
NAMES = st.binary(min_size=1, max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@given(NAMES)
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("list")
    images = replace(IMAGES, entries=(replace(ENTRIES[0], name=name), *ENTRIES[1:]))
    write_images(images, folder)
    assert read_images(folder) == images
    assert len((folder / LIST_FILE).read_text().splitlines()) == 1 + len(ENTRIES)


def test_the_digest_is_of_what_is_used() -> None:
    """Not of names, order, or what is left out; but of pixels, labels, parts and classes."""
    same = (
        replace(IMAGES, entries=ENTRIES[::-1]),
        replace(IMAGES, entries=(replace(ENTRIES[0], name="other"), *ENTRIES[1:])),
        replace(IMAGES, entries=(ENTRIES[0], ENTRIES[1], ENTRIES[3]), problems=(), key="k"),
    )
    assert {images.digest for images in same} == {IMAGES.digest}
    first, rest = ENTRIES[0], ENTRIES[1:]
    others = (
        replace(IMAGES, classes=("x", "z")),
        replace(IMAGES, entries=(replace(first, digest="ab"), *rest)),
        replace(IMAGES, entries=(replace(first, label=1), *rest)),
        replace(IMAGES, entries=(replace(first, part="read"), *rest)),
        replace(IMAGES, entries=rest),
    )
    assert len({IMAGES.digest, *(images.digest for images in others)}) == 1 + len(others)


def test_a_list_that_was_edited_is_refused(tmp_path: Path) -> None:
    """Also if the same images stand in another order, which is that of the cache."""
    write_images(IMAGES, tmp_path)
    path = tmp_path / LIST_FILE
    content = path.read_text()
    head, *lines = content.splitlines(keepends=True)
    for edited in (
        content.replace("search_val\t", "train\t"),
        head + "".join(sorted(lines)),
        content.replace("\n", "\r\n"),
        "nonsense\nnonsense\n",
    ):
        assert edited != content
        path.write_bytes(edited.encode())
        with pytest.raises(RunDirectoryError, match=r"images\.tsv: is not .* with --fresh data"):
            read_images(tmp_path)
    path.unlink()
    with pytest.raises(RunDirectoryError, match=r"images\.tsv: cannot be read"):
        read_images(tmp_path)


def test_problems_and_classes_may_have_any_name(tmp_path: Path) -> None:
    strange = os.fsdecode(b"tab\t line\n back\\ \xff")
    images = replace(
        IMAGES, classes=("x", strange), problems=(Problem(f"train/{strange}", "cut off"),)
    )
    write_images(images, tmp_path)
    assert read_images(tmp_path) == images
    # Also where they go into files of others, such as the report.
    assert all(name.encode() for name in read_summary(tmp_path)["class_names"])


def test_the_summary_counts_every_part(tmp_path: Path) -> None:
    write_images(IMAGES, tmp_path)
    found = read_summary(tmp_path)
    counts = {"train": 1, "search_val": 1, "read": 0, "val": 1, "skipped": 1, "copy": 0}
    assert found["counts"] == counts
    assert found["digest"] == IMAGES.digest
    assert found["classes"] == 2


def test_search_val_may_have_its_former_name(tmp_path: Path) -> None:
    write_images(IMAGES, tmp_path)
    path, about = tmp_path / LIST_FILE, tmp_path / ABOUT_FILE
    former = path.read_text().replace("search_val\t", "rank\t")
    path.write_text(former)
    document = about.read_text().replace('"search_val"', '"rank"')
    document = re.sub('"list": "[^"]*"', f'"list": "{module._hash(former.encode())}"', document)
    about.write_text(document)
    assert read_images(tmp_path) == IMAGES
    assert read_summary(tmp_path)["counts"] == IMAGES.summary()["counts"]
    # As an older version computed it, so that runs of both can be compared.
    assert IMAGES.digest == "c7b8ee2e2687487f"


@pytest.mark.parametrize(
    "line", ["read\t1\tbb", "read\tone\tbb\tx", "read\t1\tbb\tx\ty", "read\t1\tbb\t\\\\x"]
)
def test_lines_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(module, "_hash", lambda _: "the same")
    write_images(IMAGES, tmp_path)
    path = tmp_path / LIST_FILE
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunDirectoryError, match=r"images\.tsv: does not hold what it should"):
        read_images(tmp_path)
