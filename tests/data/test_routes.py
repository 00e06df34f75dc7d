"""Images from files and from a cache are augmented and evaluated alike."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from octnas.data.images import open_images
from octnas.data.settings import AugmentSettings, CacheSettings, ImagesSettings
from tests.data.trees import prepared

SIDE, SIZE = 32, (3, 24, 24)
COUNT = 48


def make_tree(root: Path, side: int) -> Path:
    """Photographs of a kind: shapes with a left and a right, a gradient and fine noise."""
    rng = np.random.default_rng(0)
    for part, label in itertools.product(("train", "val"), "xy"):
        folder = root / part / label
        folder.mkdir(parents=True)
        for index in range(COUNT // 2 + 2):
            rows, columns = np.mgrid[:side, :side] / side
            pixels = 60 + 80 * columns[..., None] + rng.normal(0, 20, (side, side, 3))
            centre = rng.uniform(0.3, 0.7, 2)
            disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.05
            pixels[disc] += rng.uniform(-60, 60, 3)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def square_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that a cache holds pixel by pixel."""
    return make_tree(tmp_path_factory.mktemp("square"), SIDE)


def routes(
    root: Path, folder: Path, augment: AugmentSettings, **changes: object
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], ...]:
    """Training images 0 to 1 and labels of an epoch: from the files, and from the cache."""
    found = []
    for enabled in (False, True):
        cache = CacheSettings(enabled=enabled, resolution=SIDE, folder=str(folder / "cache"))
        settings = ImagesSettings(
            root=str(root),
            search_val_per_class=1,
            read_per_class=1,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            workers=0,
            cache=cache,
            augment=augment,
        )
        data = prepared(replace(settings, **changes), folder / str(enabled), SIZE)  # type: ignore[arg-type]
        batches = open_images(data, SIZE).train_batches(8, seed=3)
        found.append(lambda number, batches=batches: join(list(batches.epoch(number))))
    return tuple(found)


def join(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


SETTINGS = {
    "crops": AugmentSettings(scale=0.08, hflip=0),
    "flips": AugmentSettings(scale=1.0),
    "colour jitter": AugmentSettings(color_jitter=0.4),
    "RandAugment": AugmentSettings(rand_augment=2, magnitude=9),
    "both": AugmentSettings(rand_augment=1, magnitude=4, color_jitter=0.2),
    "Mixup": AugmentSettings(mixup=0.4),
    "CutMix": AugmentSettings(cutmix=1.0),
    "all": AugmentSettings(rand_augment=2, color_jitter=0.3, mixup=0.2, cutmix=1.0),
}


@pytest.mark.parametrize("augment", SETTINGS.values(), ids=SETTINGS)
def test_the_cache_changes_no_pixel_of_images_that_it_holds_whole(
    square_tree: Path, tmp_path: Path, augment: AugmentSettings
) -> None:
    files, cache = routes(square_tree, tmp_path, augment)
    for number in range(2):
        (expected, labels), (found, others) = files(number), cache(number)
        assert expected.shape == (COUNT, *SIZE)
        assert torch.equal(found, expected)
        assert torch.equal(others, labels)


def statistics(images: Tensor) -> dict[str, Tensor]:
    """Of each image: brightness, contrast, colour, fine detail, direction and histogram."""
    gray = images.mean(1)
    spectrum = torch.fft.rfft2(gray - gray.mean((1, 2), keepdim=True)).abs() ** 2
    rows, columns = torch.fft.fftfreq(SIZE[1])[:, None], torch.fft.rfftfreq(SIZE[2])
    fine = (rows**2 + columns**2).sqrt() > 0.25
    left, right = gray[..., : SIZE[2] // 2].mean((1, 2)), gray[..., SIZE[2] // 2 :].mean((1, 2))
    quarters = [((gray >= q) & (gray < q + 0.25)).double().mean((1, 2)) for q in (0, 0.25, 0.5)]
    return {
        **{f"mean {c}": images[:, c].mean((1, 2)) for c in range(3)},
        **{f"std {c}": images[:, c].std((1, 2)) for c in range(3)},
        "saturation": images.std(1).mean((1, 2)),
        "fine detail": (spectrum * fine).sum((1, 2)).sqrt(),
        "flipped": (left > right).double(),
        **{f"histogram {number}": share for number, share in enumerate(quarters)},
    }


def reference(root: Path, augment: AugmentSettings) -> Tensor:
    """The training images as torchvision augments them, one by one, from the files."""
    wanted = [
        v2.RandomResizedCrop(SIZE[1:], (augment.scale, 1.0)),
        v2.RandomHorizontalFlip(augment.hflip),
        v2.PILToTensor(),
    ]
    if augment.rand_augment:
        operations = augment.rand_augment, 3 * augment.magnitude
        wanted.append(v2.RandAugment(*operations, interpolation=v2.InterpolationMode.BILINEAR))
    if augment.color_jitter:
        wanted.append(v2.ColorJitter(*[augment.color_jitter] * 3))
    transform = v2.Compose(wanted)
    images = []
    for path in sorted((root / "train").rglob("*.png")):
        with Image.open(path) as image:
            images += [transform(image.convert("RGB")) for _ in range(4)]
    return torch.stack(images).float() / 255


@pytest.mark.parametrize("name", ["crops", "flips", "colour jitter", "RandAugment", "both"])
def test_both_routes_are_distributed_as_torchvisions(
    square_tree: Path, tmp_path: Path, name: str
) -> None:
    """With the mean and the spread of every statistic; also where images are not antialiased."""
    augment = SETTINGS[name]
    torch.manual_seed(0)
    expected = statistics(reference(square_tree, augment))
    for route in routes(square_tree, tmp_path, augment):
        found = statistics(torch.cat([route(number)[0] for number in range(4)]))
        for key, values in found.items():
            theirs = expected[key]
            error = (theirs.var() / len(theirs) + values.var() / len(values)).sqrt()
            assert abs(values.mean() - theirs.mean()) <= 4 * error, key
            # The standard error of a standard deviation, by the fourth moments.
            spread = error_of_std(theirs).hypot(error_of_std(values))
            assert abs(values.std() - theirs.std()) <= 4.5 * spread + 1e-9, key


def error_of_std(values: Tensor) -> Tensor:
    centred = values - values.mean()
    fourth, second = (centred**4).mean(), (centred**2).mean()
    return ((fourth - second**2).clamp(min=0) / (4 * second.clamp(min=1e-12) * len(values))).sqrt()


@pytest.mark.parametrize("name", ["crops", "colour jitter"])
def test_a_cache_of_lower_resolution_costs_detail_alone(tmp_path: Path, name: str) -> None:
    """Crops, flips and colours are the same; what is smaller than its pixels is lost."""
    augment = replace(SETTINGS[name], scale=0.08)
    root = make_tree(tmp_path / "tree", 3 * SIDE)
    files, cache = routes(root, tmp_path, augment)
    of_files, of_cache = (statistics(route(0)[0]) for route in (files, cache))
    lost = of_cache["fine detail"] / of_files["fine detail"]
    # Crops of fewer than 24 of the cache's pixels lose it, larger ones do not.
    assert lost.quantile(0.1) < 0.8
    assert 0.9 < lost.quantile(0.9) < 1.1
    for key in ("mean 0", "mean 1", "mean 2", "saturation"):
        difference = (of_cache[key] - of_files[key]).abs()
        assert difference.median() < 0.02, key
    assert (of_cache["flipped"] == of_files["flipped"]).double().mean() > 0.9


@pytest.mark.parametrize("crop_pct", [0.7, 0.75, 0.8, 1.0])
def test_evaluation_from_the_cache_is_that_from_files(
    settings: ImagesSettings, tmp_path: Path, crop_pct: float
) -> None:
    """The cache holds what timm resizes images to before it crops them."""
    found = []
    for enabled in (False, True):
        cache = CacheSettings(enabled=enabled, folder=str(tmp_path / "cache"))
        data = prepared(
            replace(settings, cache=cache, crop_pct=crop_pct), tmp_path / str(enabled), (3, 16, 16)
        )
        images = open_images(data, (3, 16, 16))
        found.append(torch.cat([pixels for pixels, _ in images.batches("val", 3)]))
    assert found[0].std() > 0.5
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-6)
