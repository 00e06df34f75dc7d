"""Images that lie in a data set under several names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octnas.data.image_list import COPY, PARTS, SKIPPED
from octnas.data.settings import ImagesSettings
from tests.data.trees import looked


@pytest.mark.parametrize("seed", range(5))
def test_images_under_two_names_never_land_in_two_parts(
    own: ImagesSettings, root: Path, tmp_path: Path, seed: int
) -> None:
    for split, name in (("train", "red"), ("train", "blue"), ("val", "red")):
        again = root / split / name / "again.jpeg"
        again.write_bytes((root / "train/red/3.jpeg").read_bytes())
    (root / "train/blue/twin.jpeg").write_bytes((root / "train/red/4.jpeg").read_bytes())
    (root / "train/red/link.jpeg").symlink_to(root / "train/red/5.jpeg")
    with Image.open(root / "train/blue/6.jpeg") as image:
        image.save(root / "train/blue/6.png")
    found = looked(replace(own, seed=seed), tmp_path / "data")
    parts: dict[str, set[str]] = {}
    for entry in found.entries:
        if entry.part in PARTS:
            parts.setdefault(entry.digest, set()).add(entry.part)
    assert {len(where) for where in parts.values()} == {1}
    left_out = {entry.name for entry in found.entries if entry.part == COPY}
    assert left_out == {"train/red/3.jpeg", "train/red/again.jpeg", "train/blue/again.jpeg"}
    assert not any(entry.part == SKIPPED for entry in found.entries)
    for part, count in (("search_val", 3), ("read", 2)):
        labels = [entry.label for entry in found.entries if entry.part == part]
        assert np.bincount(labels).tolist() == [count, count]
