"""Batches of listed images, from files and from a cache."""

import gc
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octnas.data.batches import Part
from octnas.data.cache import CachedImages
from octnas.data.from_files import FileImages
from octnas.data.image_list import Entry
from octnas.data.images import AugmentedBatches, Images, ListedImages, open_images, preparation
from octnas.data.settings import AugmentSettings, CacheSettings, DigitsSettings, ImagesSettings
from octnas.errors import DataError, SettingError
from tests.data.trees import make_tree, prepared

SIZE = (3, 16, 16)


@pytest.fixture(params=["files", "cache"])
def either(
    request: pytest.FixtureRequest, settings: ImagesSettings, tmp_path: Path
) -> ImagesSettings:
    """Settings without and with a cache."""
    cache = CacheSettings(enabled=request.param == "cache", folder=str(tmp_path / "cache"))
    return replace(settings, cache=cache)


def opened(settings: ImagesSettings, folder: Path) -> ListedImages:
    images = open_images(prepared(settings, folder, SIZE), SIZE)
    assert isinstance(images, ListedImages)
    return images


def source(images: Images) -> type:
    batches = images.train_batches(4, 0)
    assert isinstance(batches, AugmentedBatches)
    return type(batches.images)


def test_batches_are_normalised_images(either: ImagesSettings, tmp_path: Path) -> None:
    images = opened(either, tmp_path / "data")
    assert images.classes == ("blue", "red")
    assert {part: images.count(part) for part in ("train", "search_val", "read", "val")} == {
        "train": 2 * (12 - 3 - 2),
        "search_val": 2 * 3,
        "read": 2 * 2,
        "val": 2 * 4,
    }
    (pixels, labels) = next(iter(images.batches("val", 8)))
    assert pixels.shape == (8, *SIZE)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    raw = pixels * torch.tensor(either.std)[:, None, None]
    raw = raw + torch.tensor(either.mean)[:, None, None]
    # 200 + the mean of 0..39, of 255.
    assert float(raw[0, 2].mean()) == pytest.approx(219.5 / 255, abs=0.02)
    assert float(raw[7, 0].mean()) == pytest.approx(219.5 / 255, abs=0.02)


@pytest.mark.parametrize("resolution", [0, 18, 32])
@pytest.mark.parametrize("side", [7, 8, 12, 16, 20, 40])
def test_images_of_other_sizes_than_the_cache_was_made_for(
    settings: ImagesSettings, tmp_path: Path, side: int, resolution: int
) -> None:
    """Of test sizes, and of plain networks on smaller images."""
    cache = CacheSettings(enabled=True, resolution=resolution, folder=str(tmp_path / "cache"))
    with_cache = replace(settings, cache=cache)
    shape = (3, side, side)
    images = open_images(prepared(with_cache, tmp_path / "data", SIZE), shape)
    other = open_images(prepared(settings, tmp_path / "other", SIZE), shape)
    assert len(images.batches("val", 8)) == 1
    training = images.train_batches(4, 0)
    # What is larger than the cache was made for keeps its sharpness: it comes from the files.
    assert source(images) is (FileImages if side > 16 else CachedImages)
    (found, labels), *_ = images.batches("val", 8)
    (expected, others), *_ = other.batches("val", 8)
    assert found.shape == expected.shape == (8, *shape)
    assert labels.tolist() == others.tolist()
    assert torch.equal(found, expected) == (side > 16)
    (pixels, _) = next(iter(training.epoch(0)))
    assert pixels.shape == (4, *shape)


@pytest.mark.parametrize("side", [8, 11, 16])
def test_smaller_images_are_as_smooth_in_training_as_in_evaluation(
    root: Path, tmp_path: Path, side: int
) -> None:
    """Noise is evened out; merely picking pixels keeps it: three times as much at side 8."""
    rng = np.random.default_rng(0)
    for file in sorted(root.rglob("*.jpeg")):
        noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, quality=100, subsampling=0)
    augment = AugmentSettings(scale=1.0, hflip=0)
    cache = CacheSettings(enabled=True, resolution=32, folder=str(tmp_path / "cache"))
    settings = ImagesSettings(
        root=str(root),
        search_val_per_class=3,
        read_per_class=2,
        workers=0,
        cache=cache,
        augment=augment,
    )
    data = prepared(settings, tmp_path / "data", (3, 16, 16))
    images = open_images(data, (3, side, side))
    (trained, _) = next(iter(images.train_batches(4, 0).epoch(0)))
    (judged, _) = next(iter(images.batches("val", 4)))
    assert 0.1 < float(judged.std(dim=3).mean()) < 1
    assert trained.std(dim=3).mean() < 2.2 * judged.std(dim=3).mean()


def test_a_cache_that_is_switched_off_is_not_used(own: ImagesSettings, tmp_path: Path) -> None:
    """As `octnas bench --data` does, which holds one against the other."""
    data = prepared(own, tmp_path / "data", SIZE)
    off = replace(data, settings=replace(own, cache=replace(own.cache, enabled=False)))
    assert source(open_images(data, SIZE)) is CachedImages
    assert source(open_images(off, SIZE)) is FileImages


def test_training_batches_are_shuffled_by_seed(either: ImagesSettings, tmp_path: Path) -> None:
    images = opened(either, tmp_path / "data")
    orders = [
        [labels.tolist() for _, labels in images.train_batches(7, seed).epoch(0)]
        for seed in (0, 0, 5)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_augmentation_depends_on_the_seed_alone(either: ImagesSettings, tmp_path: Path) -> None:
    """Not on the number of processes, nor on what was drawn before; and each epoch has its own."""
    epochs = []
    augment = AugmentSettings(color_jitter=0.3, rand_augment=2, mixup=0.2, cutmix=1.0)
    for workers in (0, 2):
        random.seed(workers)
        torch.manual_seed(workers)
        before = random.getstate()
        images = opened(replace(either, workers=workers, augment=augment), tmp_path / str(workers))
        batches = images.train_batches(6, seed=0)
        epochs.append([torch.cat([pixels for pixels, _ in batches.epoch(n)]) for n in range(2)])
        assert random.getstate() == before
    for epoch in range(2):
        assert torch.equal(epochs[0][epoch], epochs[1][epoch])
    assert not torch.equal(epochs[0][0], epochs[0][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_its_middle(either: ImagesSettings, tmp_path: Path, workers: int) -> None:
    """Order, augmentation and mixing are as they would have been."""
    augment = AugmentSettings(color_jitter=0.3, rand_augment=2, mixup=0.2, cutmix=1.0)
    images = opened(replace(either, workers=workers, augment=augment), tmp_path / "data")
    whole = list(images.train_batches(4, seed=1).epoch(3))
    for start in range(len(whole) + 1):
        rest = list(images.train_batches(4, seed=1).epoch(3, start))
        assert len(rest) == len(whole) - start
        for found, expected in zip(rest, whole[start:], strict=True):
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_every_batch(either: ImagesSettings, tmp_path: Path, ranks: int) -> None:
    images = opened(either, tmp_path / "data")
    whole = [labels for _, labels in images.train_batches(6, seed=3).epoch(0)]
    parts = [
        [labels for _, labels in images.train_batches(6, 3, Part(rank, ranks)).epoch(0)]
        for rank in range(ranks)
    ]
    for step, labels in enumerate(whole):
        shares = [part[step] for part in parts]
        assert torch.equal(torch.stack(shares, dim=1).flatten(), labels)


def test_ranks_that_cannot_share_a_batch(either: ImagesSettings, tmp_path: Path) -> None:
    images = opened(either, tmp_path / "data")
    with pytest.raises(SettingError, match="batch_size: found 7, allowed: a multiple of the 2"):
        images.train_batches(7, seed=0, part=Part(0, 2))
    with pytest.raises(SettingError, match="rank: found 2, allowed: 0 to 1"):
        Part(2, 2)


def test_mixed_labels_are_shares_of_classes(either: ImagesSettings, tmp_path: Path) -> None:
    images = opened(replace(either, augment=AugmentSettings(mixup=1.0)), tmp_path / "data")
    labels = torch.cat([targets for _, targets in images.train_batches(6, seed=0).epoch(0)])
    assert labels.shape == (12, 2)
    assert torch.allclose(labels.sum(1), torch.ones(12))
    assert ((labels > 0.01) & (labels < 0.99)).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_image_is_noticed(settings: ImagesSettings, tmp_path: Path, workers: int) -> None:
    """On a node without the cache whose images are not those of the list."""
    settings = replace(settings, workers=workers)
    cache = CacheSettings(enabled=True, folder=str(tmp_path / "cache"))
    root = make_tree(tmp_path / "tree")
    changed = replace(settings, root=str(root), cache=cache)
    data = prepared(changed, tmp_path / "data", SIZE)
    content = (root / "val/red/0.jpeg").read_bytes()
    (root / "val/red/0.jpeg").write_bytes((root / "val/red/1.jpeg").read_bytes())
    elsewhere = replace(changed, cache=replace(cache, folder=str(tmp_path / "other")))
    # Each time: what was refused once is not found to be there the next time.
    for _ in range(2):
        with pytest.raises(DataError, match=r"val/red/0.jpeg: differs from the image"):
            open_images(replace(data, settings=elsewhere), SIZE)
    (root / "val/red/0.jpeg").write_bytes(b"")
    with pytest.raises(DataError, match=r"0.jpeg: differs from .* began with \(not an image"):
        open_images(replace(data, settings=elsewhere), SIZE)
    (root / "val/red/0.jpeg").write_bytes(content)
    restored = open_images(replace(data, settings=elsewhere), SIZE)
    found, expected = (
        torch.cat([pixels for pixels, _ in images.batches("val", 8)])
        for images in (restored, open_images(data, SIZE))
    )
    assert torch.equal(found, expected)


def test_an_image_that_is_gone_is_named(settings: ImagesSettings, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    images = opened(replace(settings, root=str(root)), tmp_path / "data")
    (root / "val/blue/0.jpeg").unlink()
    with pytest.raises(DataError, match=r"val/blue/0.jpeg: cannot be read any more"):
        next(iter(images.batches("val", 2)))


def test_entries_are_let_go_of(either: ImagesSettings, tmp_path: Path) -> None:
    """For ImageNet they take half a gigabyte in every process."""
    data = prepared(either, tmp_path / "data", SIZE)

    def entries() -> int:
        gc.collect()
        return sum(type(thing) is Entry for thing in gc.get_objects())

    before = entries()
    images = open_images(data, SIZE)
    assert images.count("val") == 8
    assert entries() <= before


def test_preparation(settings: ImagesSettings) -> None:
    assert preparation(settings)["crop_pct"] == settings.crop_pct
    assert preparation(DigitsSettings())["crop_pct"] == 1.0


def test_some_images_of_a_part_are_those_at_spread_positions(
    either: ImagesSettings, tmp_path: Path
) -> None:
    images = opened(either, tmp_path / "data")
    every, labels = map(torch.cat, zip(*images.batches("train", 4), strict=True))
    some, of_some = map(torch.cat, zip(*images.batches("train", 4, 7), strict=True))
    # Of 14 images, in the order of their classes.
    assert torch.equal(some, every[::2])
    assert torch.equal(of_some, labels[::2])
    assert set(of_some.tolist()) == {0, 1}
    assert len(images.batches("train", 4, 7)) == 2
