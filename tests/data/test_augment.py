"""Augmentation against torchvision's transforms of single images."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from octnas.data.augment import CROP_DRAWS, BatchMixup, RandomCrop, Recolour, random_box
from octnas.data.settings import AugmentSettings

COUNT = 2000
MEAN = (0.4, 0.5, 0.6)


def draws(count: int, width: int = CROP_DRAWS) -> Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(0))


def boxes(size: tuple[int, int], smallest: float) -> Tensor:
    return torch.tensor([random_box(size, smallest, row) for row in draws(COUNT).tolist()])


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (200, 200)])
@pytest.mark.parametrize("smallest", [0.08, 0.6])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int], smallest: float) -> None:
    torch.manual_seed(1)
    image, ranges = torch.zeros(3, *size), ([smallest, 1.0], [3 / 4, 4 / 3])
    theirs = torch.tensor([RandomResizedCrop.get_params(image, *ranges) for _ in range(COUNT)])

    def features(found: Tensor) -> tuple[Tensor, ...]:
        top, left, height, width = found.double().T
        return top, left, height, width, height * width, height / width

    for ours, expected in zip(features(boxes(size, smallest)), features(theirs), strict=True):
        # The distance of Kolmogorov and Smirnov; by chance it is larger once in 100,000 times.
        both = torch.cat([ours, expected])
        shares = [
            torch.searchsorted(one.sort()[0], both, right=True) / COUNT for one in (ours, expected)
        ]
        assert (shares[0] - shares[1]).abs().max() < 2.5 * (2 / COUNT) ** 0.5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (64, 64), (10, 90), (90, 10)])
@pytest.mark.parametrize("smallest", [0.001, 0.35, 1.0])
def test_boxes_never_leave_the_image(size: tuple[int, int], smallest: float) -> None:
    top, left, height, width = boxes(size, smallest).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


@pytest.mark.parametrize("size", [(10, 90), (90, 10)])
def test_where_no_box_fits_it_is_torchvisions_middle(size: tuple[int, int]) -> None:
    theirs = RandomResizedCrop.get_params(torch.zeros(3, *size), [1.0, 1.0], [3 / 4, 4 / 3])
    assert {tuple(box) for box in boxes(size, 1.0).tolist()} == {tuple(theirs)}


@pytest.mark.parametrize("size", [(16, 16), (9, 30), (80, 50)])
@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_crops_are_those_of_torchvision(size: tuple[int, int], hflip: float) -> None:
    """With antialiasing, to the last of 8 bits, and mirrored as often as the settings say."""
    rng, flipped = np.random.default_rng(0), 0
    image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    settings = AugmentSettings(scale=0.2, hflip=hflip)
    for row in draws(200).tolist():
        box = random_box((48, 64), 0.2, row)
        expected = np.asarray(v2.functional.resized_crop(image, *box, list(size)))
        found = RandomCrop(settings, size)(image, row).transpose(1, 2, 0)
        straight, mirrored = (
            np.abs(found.astype(int) - one).max() <= 1 for one in (expected, expected[:, ::-1])
        )
        assert straight != mirrored
        flipped += mirrored
    assert abs(flipped / 200 - hflip) <= 4 * (hflip * (1 - hflip) / 200) ** 0.5


@pytest.mark.parametrize("size", [(16, 16), (9, 30), (80, 50)])
def test_crops_of_a_batch_are_those_of_single_images(size: tuple[int, int]) -> None:
    """By the same numbers the same boxes and flips, antialiased alike."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 48, 64, 3), dtype=np.uint8)
    crop, rows = RandomCrop(AugmentSettings(scale=0.05), size), draws(64)
    found = crop.by_matrices(torch.from_numpy(pixels), rows)
    single = [
        crop(Image.fromarray(image), row) for image, row in zip(pixels, rows.tolist(), strict=True)
    ]
    expected = torch.from_numpy(np.stack(single))
    assert found.shape == (64, 3, *size)
    assert expected.float().std() > 20
    assert torch.equal(crop.batch(torch.from_numpy(pixels), rows), expected)
    assert (found.int() - expected.int()).abs().max() <= 1


def noise(count: int, side: int = 24) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    # Of limited contrast, so that not every operation saturates, and smooth enough to be moved.
    small = torch.randint(40, 200, (count, 3, side // 4, side // 4), generator=rng).float()
    return F.interpolate(small, size=(side, side), mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        AugmentSettings(rand_augment=2),
        AugmentSettings(color_jitter=0.4),
        AugmentSettings(rand_augment=1, color_jitter=0.2, magnitude=5),
    ],
)
def test_every_image_of_a_batch_is_changed_by_its_own_numbers_alone(
    settings: AugmentSettings,
) -> None:
    recolour, images = Recolour(settings, MEAN), noise(1).expand(64, -1, -1, -1)
    rows = draws(64, recolour.draws)
    found = recolour(images, rows)
    single = [recolour(images[:1], row[None])[0] for row in rows]
    # Sums over pixels may be taken in another order.
    assert (found.float() - torch.stack(single).float()).abs().max() <= 1
    different = {tuple(one.flatten().tolist()) for one in found}
    # Colour jitter differs in every image; one of 14 operations with a fixed strength does not.
    assert len(different) == 64 if settings.color_jitter else len(different) > 20
    assert torch.equal(images, noise(1).expand(64, -1, -1, -1))


@pytest.mark.parametrize("magnitude", [0, 5, 9, 10])
def test_rand_augment_has_the_operations_of_torchvision(magnitude: int) -> None:
    """In every direction, with the same strength; and all of them equally often."""
    image, theirs = noise(1), v2.RandAugment(1, 3 * magnitude)
    recolour = Recolour(AugmentSettings(rand_augment=1, magnitude=magnitude), MEAN)
    fill = {torch.Tensor: [255 * value for value in MEAN]}
    rows = torch.tensor(list(itertools.product((torch.arange(14) + 0.5) / 14, (0.1, 0.9))))
    found = recolour(image.expand(28, -1, -1, -1), rows).view(14, 2, *image.shape[1:])
    space = theirs._AUGMENTATION_SPACE
    assert len(space) == 14
    for ours, (name, (magnitudes, signed)) in zip(found, space.items(), strict=True):
        strengths = magnitudes(31, 24, 24)
        strength = 0.0 if strengths is None else float(strengths[3 * magnitude])
        for one, sign in zip(ours, (1, -1), strict=True):
            expected = theirs._apply_image_or_video_transform(
                image,
                name,
                sign * strength if signed else strength,
                v2.InterpolationMode.BILINEAR,
                fill,
            )
            assert (one.float() - expected[0].float()).abs().max() <= 1, name


def test_colour_jitter_is_distributed_as_torchvisions() -> None:
    """Means, contrasts and saturations of the same image, changed many times."""
    image, count, strength = noise(1), 600, 0.4
    recolour = Recolour(AugmentSettings(color_jitter=strength), MEAN)
    found = recolour(image.expand(count, -1, -1, -1), draws(count, recolour.draws)).float()
    torch.manual_seed(0)
    jitter = v2.ColorJitter(strength, strength, strength)
    theirs = torch.cat([jitter(image) for _ in range(count)]).float()
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.mean(1).std((1, 2)),
        lambda x: x.std(1).mean((1, 2)),
    ):
        ours, expected = statistic(found), statistic(theirs)
        error = (2 / count) ** 0.5 * expected.std()
        assert abs(ours.mean() - expected.mean()) < 4 * error
        assert abs(ours.std() / expected.std() - 1) < 4 / count**0.5


def test_mixup_by_the_seed_alone() -> None:
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 5
    mix = BatchMixup(AugmentSettings(mixup=0.4, cutmix=1.0), classes=5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = [mix(images.clone(), labels, seed) for seed in (0, 0, 1)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[2][0])


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
