"""What lies on disk, by torchvision's and timm's own readers."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from octnas.data import sources as module
from octnas.data.image_list import read_images
from octnas.data.images import open_images
from octnas.data.listing import Problem
from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.data.sources import list_images, open_reader
from octnas.errors import DataError
from tests.data.trees import make_tree, prepared

SIZE = (3, 16, 16)


def settings(root: Path, **kwargs: object) -> ImagesSettings:
    common = {"rank_per_class": 1, "read_per_class": 1, "workers": 0}
    return ImagesSettings(root=str(root), **{**common, **kwargs})  # type: ignore[arg-type]


def encoded(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_folders(tmp_path: Path) -> None:
    listing = list_images(settings(make_tree(tmp_path, 3, 2)))
    assert listing.classes == ("blue", "red")
    assert listing.labels == {"train": (0, 0, 0, 1, 1, 1), "val": (0, 0, 1, 1)}
    assert listing.names["val"][:2] == ("val/blue/0.jpeg", "val/blue/1.jpeg")
    assert open_reader(settings(tmp_path)).read("val/red/1.jpeg").size == (24, 20)


def test_folders_that_do_not_fit_are_problems(tmp_path: Path) -> None:
    root = make_tree(tmp_path, 3, 2)
    for name in ("train/extra", "train/hollow", "val/other", "val/hollow"):
        (root / name).mkdir()
    image = (root / "val/red/0.jpeg").read_bytes()
    for name in ("train/extra", "val/other"):
        (root / name / "0.jpeg").write_bytes(image)
    (root / "train/red/deep").mkdir()
    (root / "train/red/deep/loop").symlink_to(root / "train")
    (root / "train/red/deep/above").symlink_to(root.parent)
    listing = list_images(settings(root))
    assert listing.classes == ("blue", "red")
    assert len(listing.names["train"]) == 6
    assert set(listing.problems) == {
        Problem("train/red/deep/loop", "a symbolic link to a folder around it"),
        Problem("train/red/deep/above", "a symbolic link to a folder around it"),
        Problem("train/hollow", "a class without images"),
        Problem("val/hollow", "a class without images"),
        Problem("train/extra", "a class that val does not have"),
        Problem("val/other", "a class that train does not have"),
    }


@pytest.mark.parametrize(
    ("source", "kwargs"),
    [
        ("cifar10", {}),
        ("cifar100", {}),
        ("imagenet", {}),
        ("imagenette", {}),
        ("timm", {"name": "hfds/uoft-cs/cifar10"}),
        ("timm", {"name": "wds/", "cache": CacheSettings(enabled=True)}),
        ("folder", {}),
    ],
)
def test_nothing_is_downloaded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kwargs: dict[str, object]
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises(DataError, match=r"^data[.:]"):
        list_images(settings(tmp_path, source=source, **kwargs))


def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list):
        content = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8)}
        (folder / name).write_bytes(pickle.dumps({**content, "labels": [*range(10)] * 2}))
    classes = [f"class {label}" for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    for place in ("torchvision.datasets.cifar.check_integrity",):
        monkeypatch.setattr(place, lambda *_: True)
    chosen = settings(tmp_path, source="cifar10")
    listing = list_images(chosen)
    assert listing.classes == tuple(classes)
    assert {split: len(names) for split, names in listing.names.items()} == {
        "train": 100,
        "val": 20,
    }
    images = open_images(prepared(chosen, tmp_path / "data", SIZE), SIZE)
    assert {part: images.count(part) for part in ("train", "rank", "read", "val")} == {
        "train": 80,
        "rank": 10,
        "read": 10,
        "val": 20,
    }
    assert next(iter(images.train_batches(8, seed=0)))[0].shape == (8, *SIZE)


def test_imagenette(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            for index in range(3):
                (folder / f"{index}.JPEG").write_bytes(encoded(rng))
    listing = list_images(settings(tmp_path, source="imagenette"))
    assert listing.classes == ("n01440764", "n02102040")
    assert listing.names["train"][0] == "imagenette2/train/n01440764/0.JPEG"


def test_parquet_shards(tmp_path: Path) -> None:
    hugging = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    features = hugging.Features(
        {"image": hugging.Image(), "label": hugging.ClassLabel(names=["cat", "dog"])}
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    for split, count in (("train", 12), ("validation", 4)):
        rows = {
            "image": [{"bytes": encoded(rng), "path": None} for _ in range(count)],
            "label": [index % 2 for index in range(count)],
        }
        table = hugging.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(shards / f"{split}-00000-of-00001.parquet"))
    (tmp_path / "root").mkdir()
    chosen = settings(
        tmp_path / "root", source="timm", name=f"hfds/{shards}", train="train", val="validation"
    )
    listing = list_images(chosen)
    assert listing.classes == ("cat", "dog")
    assert listing.labels["val"] == (0, 1, 0, 1)
    images = open_images(prepared(chosen, tmp_path / "data", SIZE), SIZE)
    assert images.count("train") == 8
    assert sum(len(labels) for _, labels in images.batches("val", 3)) == 4


# webdataset leaves its shards open.
@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in.*\.tar:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings(r"ignore:unclosed file.*\.tar:ResourceWarning")
def test_webdataset_shards_with_a_broken_image(tmp_path: Path) -> None:
    """timm's reader passes over what it cannot read; the count tells."""
    pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    info: dict[str, object] = {}
    for split, count in (("train", 14), ("val", 4)):
        name = f"{split}-0000.tar"
        with tarfile.open(tmp_path / name, "w") as tar:
            for index in range(count):
                broken = (split, index) == ("train", 5)
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
    assert found.problems == (Problem("train", "1 of 14 images cannot be read"),)
    images = open_images(data, SIZE)
    counts = {part: images.count(part) for part in ("train", "rank", "read", "val")}
    assert counts == {"train": 9, "rank": 2, "read": 2, "val": 4}
    assert [labels.tolist() for _, labels in images.batches("val", 4)] == [[0, 1, 0, 1]]


def test_libraries_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    cache = CacheSettings(enabled=True)
    with pytest.raises(DataError, match=r'needs webdataset: pip install "octnas\[shards\]"'):
        list_images(settings(tmp_path, source="timm", name="wds/", cache=cache))
