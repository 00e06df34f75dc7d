"""What lies on disk, by torchvision's and timm's own readers."""

import io
import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from octnas.data import sources as module
from octnas.data.images import open_images
from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.data.sources import Problem, list_images, open_reader
from octnas.errors import DataError
from tests.data.trees import make_tree, prepared

SIZE = (3, 16, 16)


def settings(root: Path, **kwargs: object) -> ImagesSettings:
    common = {"search_val_per_class": 1, "read_per_class": 1, "workers": 0}
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
        Problem("train/red/deep/loop", "a symbolic link to a parent folder"),
        Problem("train/red/deep/above", "a symbolic link to a parent folder"),
        Problem("train/hollow", "a class without images"),
        Problem("val/hollow", "a class without images"),
        Problem("train/extra", "a class that val does not have"),
        Problem("val/other", "a class that train does not have"),
    }


def test_links_among_classes_are_not_followed(tmp_path: Path) -> None:
    """Each would bring the images of another class, and there are millions of ways through them."""
    root = make_tree(tmp_path / "tree", 3, 2)
    more = [f"class{number}" for number in range(10)]
    for split, name in itertools.product(("train", "val"), more):
        shutil.copytree(root / split / "red", root / split / name)
    for here, there in itertools.permutations(more, 2):
        (root / "train" / here / there).symlink_to(root / "train" / there)
    (root / "train" / "alias").symlink_to("blue")
    listing = list_images(settings(root))
    assert listing.classes == ("blue", *more, "red")
    assert len(listing.names["train"]) == 12 * 3
    reason = "a symbolic link to a folder that is already included"
    links = [f"{here}/{there}" for here, there in itertools.permutations(more, 2)]
    assert set(listing.problems) == {
        *(Problem(f"train/{link}", reason) for link in ("alias", *links)),
        Problem("train/alias", "a class without images"),
    }


def test_classes_may_be_links_to_other_disks(tmp_path: Path) -> None:
    """Where each folder is reached by one way, loops among the targets or not."""
    root, disk = make_tree(tmp_path / "tree", 3, 2), tmp_path / "disk"
    disk.mkdir()
    for name in ("blue", "red"):
        (root / "train" / name).rename(disk / name)
        (root / "train" / name).symlink_to(disk / name)
    assert len(list_images(settings(root)).names["train"]) == 6
    assert list_images(settings(root)).problems == ()
    (disk / "red" / "back").symlink_to(root / "train")
    (disk / "red" / "up").symlink_to(disk)
    (disk / "red" / "other").symlink_to(disk / "blue")
    listing = list_images(settings(root))
    assert len(listing.names["train"]) == 6
    assert {problem.name for problem in listing.problems} == {
        f"train/red/{name}" for name in ("back", "up", "other")
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


@pytest.mark.parametrize(("kind", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, classes: int) -> None:
    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    fine = "fine_" if kind == "cifar100" else ""
    folder = tmp_path / reader.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in (*reader.train_list, *reader.test_list):
        pixels = rng.integers(0, 256, (4 * classes, 3072), dtype=np.uint8)
        content = {"data": pixels, f"{fine}labels": [*range(classes)] * 4}
        # The twenty coarse classes are another task.
        content["coarse_labels"] = [0] * len(pixels)
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {label}" for label in range(classes)]
    meta = folder / reader.meta["filename"]
    meta.write_bytes(pickle.dumps({f"{fine}label_names": names}))
    chosen = settings(tmp_path, source=kind)
    with pytest.raises(DataError, match=rf"{kind} cannot be read from .* \(Dataset not found"):
        list_images(chosen)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    listing = list_images(chosen)
    assert listing.classes == tuple(names)
    train = 4 * classes * len(reader.train_list)
    assert {split: len(names) for split, names in listing.names.items()} == {
        "train": train,
        "val": 4 * classes,
    }
    assert listing.labels["val"] == (*range(classes),) * 4
    with (folder / reader.test_list[0][0]).open("rb") as file:
        first = pickle.load(file)["data"][1]
    read = np.asarray(open_reader(chosen).read("val/1"))
    assert np.array_equal(read.transpose(2, 0, 1).ravel(), first)
    images = open_images(prepared(chosen, tmp_path / "data", SIZE), SIZE)
    assert {part: images.count(part) for part in ("train", "search_val", "read", "val")} == {
        "train": train - 2 * classes,
        "search_val": classes,
        "read": classes,
        "val": 4 * classes,
    }
    assert next(iter(images.batches("train", 8)))[0].shape == (8, *SIZE)


def imagenet(root: Path) -> Path:
    """As torchvision leaves it on disk: two classes, named by WordNet."""
    rng = np.random.default_rng(0)
    words = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    for split, count in (("train", 4), ("val", 2)):
        for wnid in words:
            (root / split / wnid).mkdir(parents=True)
            for index in range(count):
                (root / split / wnid / f"{wnid}_{index}.JPEG").write_bytes(encoded(rng))
    torch.save((words, [*words] * 2), root / "meta.bin")
    return root


def test_imagenet(tmp_path: Path) -> None:
    chosen = settings(imagenet(tmp_path / "imagenet"), source="imagenet")
    listing = list_images(chosen)
    assert listing.classes == ("n01440764", "n01443537")
    assert listing.labels == {"train": (0,) * 4 + (1,) * 4, "val": (0, 0, 1, 1)}
    assert listing.names["val"][2] == "val/n01443537/n01443537_0.JPEG"
    images = open_images(prepared(chosen, tmp_path / "data", SIZE), SIZE)
    assert images.count("train") == 4
    assert [labels.tolist() for _, labels in images.batches("val", 4)] == [[0, 0, 1, 1]]


def test_imagenet_that_is_packed(tmp_path: Path) -> None:
    """torchvision unpacks what lies there, and says what does not."""
    root = imagenet(tmp_path / "imagenet")
    shutil.rmtree(root / "val")
    chosen = settings(root, source="imagenet")
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val\.tar is not present") as caught:
        list_images(chosen)
    assert "data.download" not in str(caught.value)


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


@pytest.mark.parametrize(("source", "below"), [("imagenet", ""), ("imagenette", "imagenette2")])
def test_what_is_wrong_with_folders_is_in_the_list(tmp_path: Path, source: str, below: str) -> None:
    """Where torchvision's own classes refuse the whole."""
    root = imagenet(tmp_path / below)
    (root / "train" / "n99999999").mkdir()
    (root / "train" / "n01440764" / "loop").symlink_to(root)
    listing = list_images(settings(tmp_path, source=source))
    assert listing.classes == ("n01440764", "n01443537")
    train = root.relative_to(tmp_path) / "train"
    assert set(listing.problems) == {
        Problem(f"{train}/n99999999", "a class without images"),
        Problem(f"{train}/n01440764/loop", "a symbolic link to a parent folder"),
    }


def test_libraries_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    cache = CacheSettings(enabled=True)
    with pytest.raises(DataError, match=r'needs webdataset: pip install "octnas\[shards\]"'):
        list_images(settings(tmp_path, source="timm", name="wds/", cache=cache))
