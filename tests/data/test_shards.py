"""Shards, by timm's own readers: parquet and WebDataset."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from octnas.data import sources as module
from octnas.data.image_list import read_images
from octnas.data.images import open_images
from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.data.sources import Problem, list_images
from octnas.errors import DataError
from tests.data.test_sources import SIZE, encoded, settings
from tests.data.trees import prepared


def parquet(shards: Path, label: str = "label") -> Path:
    """Shards of two classes: 12 images and 4."""
    hugging = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    features = hugging.Features(
        {"image": hugging.Image(), label: hugging.ClassLabel(names=["cat", "dog"])}
    )
    shards.mkdir()
    for split, count in (("train", 12), ("validation", 4)):
        rows = {
            "image": [{"bytes": encoded(rng), "path": None} for _ in range(count)],
            label: [index % 2 for index in range(count)],
        }
        table = hugging.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(shards / f"{split}-00000-of-00001.parquet"))
    return shards


def of_parquet(shards: Path, root: Path) -> ImagesSettings:
    return settings(root, source="timm", name=f"hfds/{shards}", train="train", val="validation")


def test_parquet_shards(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    chosen = of_parquet(parquet(tmp_path / "shards"), tmp_path / "root")
    listing = list_images(chosen)
    assert listing.classes == ("cat", "dog")
    assert listing.labels["val"] == (0, 1, 0, 1)
    images = open_images(prepared(chosen, tmp_path / "data", SIZE), SIZE)
    assert images.count("train") == 8
    assert sum(len(labels) for _, labels in images.batches("val", 3)) == 4


@pytest.mark.parametrize("root", ["", "shards"])
def test_copies_of_parquet_shards_are_no_shards(tmp_path: Path, root: str) -> None:
    """The library makes copies below the root, which may be the shards' folder or that above."""
    shards = parquet(tmp_path / "shards")
    for _ in range(2):
        module.open_dataset.cache_clear()
        listing = list_images(of_parquet(shards, tmp_path / root))
        assert {split: len(names) for split, names in listing.names.items()} == {
            "train": 12,
            "val": 4,
        }


def test_parquet_shards_without_labels(tmp_path: Path) -> None:
    chosen = of_parquet(parquet(tmp_path / "shards", "fine_label"), tmp_path)
    with pytest.raises(DataError, match=r"cannot be read from .* \(it has no 'label'\)$"):
        list_images(chosen)


def test_changed_shards_give_another_key(tmp_path: Path) -> None:
    shards = parquet(tmp_path / "shards")
    keys = []
    for changed in (False, True):
        if changed:
            for path in shards.glob("*.parquet"):
                path.unlink()
            shards.rmdir()
            parquet(shards)
        module.open_dataset.cache_clear()
        prepared(of_parquet(shards, tmp_path), tmp_path / "data", SIZE)
        keys.append(read_images(tmp_path / "data").key)
    assert keys[0] != keys[1]


# webdataset leaves its shards open.
@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in.*\.tar:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings(r"ignore:unclosed file.*\.tar:ResourceWarning")
def test_webdataset_shards_with_broken_images(tmp_path: Path) -> None:
    """timm's reader passes over what it cannot read; the count tells."""
    pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    info: dict[str, object] = {}
    for split, count in (("train", 15), ("val", 4)):
        name = f"{split}-0000.tar"
        with tarfile.open(tmp_path / name, "w") as tar:
            for index in range(count):
                broken = split == "train" and index in (5, 14)
                content = b"no image" if broken else encoded(rng)
                pairs = ((f"{index:04d}.png", content), (f"{index:04d}.cls", b"%d" % (index % 2)))
                for file, data in pairs:
                    entry = tarfile.TarInfo(file)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        shard = {"name": split, "num_samples": count, "filenames": [name]}
        info[split] = {**shard, "shard_lengths": [count]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": info}))
    cache = CacheSettings(enabled=True, folder=str(tmp_path / "cache"))
    chosen = settings(
        tmp_path, source="timm", name="wds/", on_error="skip", crop_pct=1.0, cache=cache
    )
    data = prepared(chosen, tmp_path / "data", SIZE)
    found = read_images(tmp_path / "data")
    assert found.problems == (
        Problem("train", "image 1 of 2 that cannot be read, among 15"),
        Problem("train", "image 2 of 2 that cannot be read, among 15"),
    )
    images = open_images(data, SIZE)
    counts = {part: images.count(part) for part in ("train", "search_val", "read", "val")}
    assert counts == {"train": 9, "search_val": 2, "read": 2, "val": 4}
    assert [labels.tolist() for _, labels in images.batches("val", 4)] == [[0, 1, 0, 1]]
    for side in (SIZE[1] // 2, 3 * SIZE[1]):  # of which there are no files to go back to
        (pixels, _), *_ = open_images(data, (3, side, side)).batches("val", 4)
        assert pixels.shape == (4, 3, side, side)
