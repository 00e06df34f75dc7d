"""Augmentation of batches against torchvision's of single images."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop

from octnas.data.augment import BatchAugment, BatchMixup, crop, random_boxes
from octnas.data.settings import IMAGENET_MEAN, IMAGENET_STD, AugmentSettings

CPU = torch.device("cpu")
COUNT = 4000


@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
@pytest.mark.parametrize("smallest", [0.08, 0.6])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int], smallest: float) -> None:
    boxes = random_boxes(COUNT, size, smallest, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    image = torch.zeros(3, *size)
    ranges = [smallest, 1.0], [3 / 4, 4 / 3]
    theirs = torch.tensor([RandomResizedCrop.get_params(image, *ranges) for _ in range(COUNT)])
    assert (boxes >= 0).all()
    for column in range(4):
        ours, expected = boxes[:, column].sort()[0], theirs[:, column].sort()[0].float()
        # Two samples of 4,000: mean distance of their quantiles, in pixels.
        assert (ours - expected).abs().mean() < 0.03 * max(size)
    assert (boxes[:, 0] + boxes[:, 2]).max() == size[0]
    assert (boxes[:, 1] + boxes[:, 3]).max() <= size[1]


def test_crops_are_those_of_affine_grid() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 20, 24, 3), generator=rng, dtype=torch.uint8)
    boxes = random_boxes(6, (20, 24), 0.2, rng)
    flips = torch.tensor([True, False] * 3)
    found = crop(images, boxes, flips, (8, 10))
    top, left, height, width = boxes.unbind(1)
    theta = torch.zeros(6, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (
        width / 24 * (1 - 2 * flips.float()),
        (2 * left + width) / 24 - 1,
    )
    theta[:, 1, 1], theta[:, 1, 2] = height / 20, (2 * top + height) / 20 - 1
    grid = F.affine_grid(theta, [6, 3, 8, 10], align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    expected = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    assert expected.std() > 20
    assert torch.allclose(found, expected, atol=0.01)


def test_the_whole_image_stays_as_it_is() -> None:
    images = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 9, 7]] * 2)
    pixels = images.permute(0, 3, 1, 2).float()
    found = crop(images, boxes, torch.tensor([False, True]), (9, 7))
    assert torch.allclose(found[0], pixels[0], atol=1e-3)
    assert torch.allclose(found[1], pixels[1].flip(-1), atol=1e-3)


def augment(images: torch.Tensor, seed: int, **settings: float) -> torch.Tensor:
    made = AugmentSettings(**settings)  # type: ignore[arg-type]
    return BatchAugment(made, (16, 16), IMAGENET_MEAN, IMAGENET_STD, CPU)(images, seed)


@pytest.mark.parametrize("settings", [{"rand_augment": 2}, {"color_jitter": 0.4}])
def test_colours_change_by_the_seed_alone(settings: dict[str, float]) -> None:
    images = torch.randint(0, 256, (16, 20, 20, 3), dtype=torch.uint8)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    plain, first, again = (augment(images, 3, **kind) for kind in ({}, settings, settings))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, 4, **settings))
    assert (first - plain).abs().mean() > 0.02
    raw = first * torch.tensor(IMAGENET_STD)[:, None, None]
    raw += torch.tensor(IMAGENET_MEAN)[:, None, None]
    assert -1e-5 < raw.min() < raw.max() < 1 + 1e-5
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


def test_mixup_by_the_seed_alone() -> None:
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 5
    mix = BatchMixup(AugmentSettings(mixup=0.4, cutmix=1.0), classes=5)
    found = [mix(images.clone(), labels, seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[2][0])
    assert torch.allclose(found[0][1].sum(1), torch.ones(8))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (64, 64), (10, 90), (90, 10)])
@pytest.mark.parametrize("smallest", [0.001, 0.35, 1.0])
def test_boxes_never_leave_the_image(size: tuple[int, int], smallest: float) -> None:
    boxes = random_boxes(1000, size, smallest, torch.Generator().manual_seed(0))
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


@pytest.mark.parametrize("size", [(10, 90), (90, 10)])
def test_where_no_box_fits_it_is_torchvisions_middle(size: tuple[int, int]) -> None:
    boxes = random_boxes(20, size, 1.0, torch.Generator().manual_seed(0))
    theirs = RandomResizedCrop.get_params(torch.zeros(3, *size), [1.0, 1.0], [3 / 4, 4 / 3])
    assert boxes.tolist() == [list(theirs)] * 20


@pytest.mark.parametrize("smallest", [0.08, 0.5])
def test_areas_and_ratios_are_distributed_as_torchvisions(smallest: float) -> None:
    side = 200
    boxes = random_boxes(COUNT, (side, side), smallest, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    image = torch.zeros(3, side, side)
    ranges = [smallest, 1.0], [3 / 4, 4 / 3]
    theirs = torch.tensor([RandomResizedCrop.get_params(image, *ranges) for _ in range(COUNT)])
    quantiles = torch.linspace(0.05, 0.95, 10)
    for found, expected in (
        (boxes[:, 2] * boxes[:, 3] / side**2, theirs[:, 2] * theirs[:, 3] / side**2),
        ((boxes[:, 3] / boxes[:, 2]).log(), (theirs[:, 3] / theirs[:, 2]).log()),
    ):
        distance = found.quantile(quantiles) - expected.float().quantile(quantiles)
        # Of two samples of 4,000 each; densities are at least about 1 here.
        assert distance.abs().max() < 5 * (0.25 / COUNT * 2) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_images_are_mirrored(share: float) -> None:
    ramp = torch.arange(16, dtype=torch.uint8)[None, None, :, None] * 16
    images = ramp.expand(1000, 16, 16, 3)
    found = augment(images, 0, scale=1.0, hflip=share)
    mirrored = (found[..., 0] > found[..., -1]).flatten(1).all(1)
    upright = (found[..., 0] < found[..., -1]).flatten(1).all(1)
    assert (mirrored ^ upright).all()
    sigma = (share * (1 - share) / 1000) ** 0.5
    assert abs(float(mirrored.float().mean()) - share) <= 4 * sigma


def test_each_image_of_a_batch_has_its_own_crop() -> None:
    image = torch.randint(0, 256, (1, 20, 20, 3), dtype=torch.uint8)
    found = augment(image.expand(12, 20, 20, 3), 0)
    assert len({tuple(one.flatten().tolist()) for one in found}) == 12


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("settings", [{}, {"rand_augment": 1, "color_jitter": 0.2}])
def test_batches_of_any_size(count: int, settings: dict[str, float]) -> None:
    images = torch.randint(0, 256, (count, 20, 20, 3), dtype=torch.uint8)
    found = augment(images, 0, **settings)
    assert found.shape == (count, 3, 16, 16)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("settings", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(settings: dict[str, float]) -> None:
    """Images of which channel c is the share of class c, so that their mean is the label."""
    labels = torch.arange(6) % 4
    images = F.one_hot(labels, 4).float()[:, :, None, None].expand(6, 4, 8, 8)
    mix = BatchMixup(AugmentSettings(**settings), classes=4)  # type: ignore[arg-type]
    seen = set()
    for seed in range(20):
        mixed, shares = mix(images.clone(), labels, seed)
        assert torch.allclose(mixed.mean((2, 3)), shares, atol=1e-5)
        seen.add(round(float(shares[0, 0]), 4))
    assert len(seen) > 5


def test_mixup_leaves_generators_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    BatchMixup(AugmentSettings(mixup=0.4), classes=2)(
        torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), 0
    )
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
