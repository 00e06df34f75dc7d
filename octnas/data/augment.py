"""Augmentation of training images, the same from files and from a cache.

Every image has random numbers of its own, uniform on [0, 1), so that nothing depends on which
process crops it or on its batch. Images from files are cropped where they are decoded, those from
a cache on the device that trains; there colours are changed in batches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from octnas.data.settings import AugmentSettings

RATIO = (3 / 4, 4 / 3)
_TRIES = 10
# Random numbers of a crop: place (2), flip, then area and aspect ratio of every try.
CROP_DRAWS = 3 + 2 * _TRIES
# Of colour jitter: three factors and the order of their operations.
_JITTER_DRAWS = 6
_LUMA = (0.2989, 0.587, 0.114)


def random_box(
    size: Sequence[int], smallest: float, draws: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, distributed as by `RandomResizedCrop`.

    Args:
        size: height and width of the image.
        smallest: smallest share of its area.
        draws: `CROP_DRAWS` random numbers.
    """
    height, width = size
    low, high = map(math.log, RATIO)
    for share, shape in zip(draws[3:CROP_DRAWS:2], draws[4:CROP_DRAWS:2], strict=True):
        area = height * width * (smallest + (1 - smallest) * share)
        ratio = math.exp(low + (high - low) * shape)
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = (height - box_height + 1) * draws[0], (width - box_width + 1) * draws[1]
            return int(top), int(left), box_height, box_width
    # The largest central crop within the limits of the aspect ratio.
    box_height = min(height, round(width / RATIO[0]))
    box_width = min(width, round(height * RATIO[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop and horizontal flip of one image, antialiased as in evaluation."""

    settings: AugmentSettings
    size: tuple[int, int]

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> np.ndarray:
        """``(3, *size)`` uint8 of an RGB image, by the first `CROP_DRAWS` random numbers."""
        pixels = torch.tensor(np.asarray(image))[None]
        return self.batch(pixels, torch.tensor([draws], dtype=torch.float64))[0].numpy()

    def batch(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """The same for images of one size, on any device.

        Args:
            pixels: ``(N, H, W, 3)`` uint8.
            draws: ``(N, CROP_DRAWS)`` or wider, on the CPU.

        Returns:
            ``(N, 3, *size)`` uint8.
        """
        if pixels.device.type != "cpu":
            return self.by_matrices(pixels, draws)
        images = pixels.permute(0, 3, 1, 2)
        # Image by image, which is too little for torch to start more threads.
        found = pixels.new_empty((len(pixels), 3, *self.size))
        for index, row in enumerate(draws.tolist()):
            top, left, height, width = random_box(images.shape[2:], self.settings.scale, row)
            crop = images[index : index + 1, :, top : top + height, left : left + width]
            # As PIL resizes but for 1 in a few values, and faster.
            resized = interpolate(crop, self.size, mode="bilinear", antialias=True)[0]
            found[index] = resized.flip(2) if row[2] < self.settings.hflip else resized
        return found

    def by_matrices(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """As `batch`, in few kernels for a GPU; values may differ by 1, being rounded once."""
        count, height, width, channels = pixels.shape
        boxes = [random_box((height, width), self.settings.scale, row) for row in draws.tolist()]
        top, left, box_height, box_width = torch.tensor(boxes, device=pixels.device).T
        rows = _resampling(top, box_height, height, self.size[0])
        columns = _resampling(left, box_width, width, self.size[1])
        flipped = (draws[:, 2] < self.settings.hflip).to(pixels.device)[:, None, None]
        columns = torch.where(flipped, columns.flip(1), columns)
        shrunk = rows @ pixels.float().view(count, height, width * channels)
        # (N, W, rows × channels)
        turned = shrunk.view(count, -1, width, channels).transpose(1, 2).reshape(count, width, -1)
        found = (columns @ turned).view(count, self.size[1], self.size[0], channels)
        return found.round_().to(torch.uint8).permute(0, 3, 2, 1).contiguous()


def _resampling(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Weights ``(N, out, size)`` of antialiased bilinear resizing of a part of each line.

    Args:
        start, length: ``(N,)``, of the part.
        size, out: pixels of the whole line and of the result.
    """
    step = (length / out)[:, None]
    centres = start[:, None] + (torch.arange(out, device=start.device) + 0.5) * step
    places = torch.arange(size, device=start.device) + 0.5
    weights = 1 - (places - centres[..., None]).abs() / step.clamp(min=1)[..., None]
    inside = (places > start[:, None]) & (places < (start + length)[:, None])
    weights = weights.clamp_(min=0) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


class Normalise:
    """uint8 pixels to normalised float32, on a device.

    Args:
        mean, std: of pixel values scaled to [0, 1], by channel.
        device: of the result.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(std, device=device)[:, None, None] * 255)

    def __call__(self, pixels: Tensor) -> Tensor:
        """``(N, C, H, W)``."""
        return self.moved(pixels).to(torch.float32, copy=True).sub_(self._mean).mul_(self._scale)

    def moved(self, tensor: Tensor) -> Tensor:
        """Any tensor on the device."""
        return tensor.to(self.device, non_blocking=True)


class Recolour:
    """RandAugment (arXiv 1909.13719), then colour jitter, with parameters of every image's own.

    RandAugment has torchvision's 14 operations, one of which is the identity. Images that
    draw the same operation are changed together.

    Args:
        settings: ``rand_augment``, ``magnitude`` and ``color_jitter``.
        mean: pixel values scaled to [0, 1] that fill what is moved into the image, by channel.
    """

    def __init__(self, settings: AugmentSettings, mean: Sequence[float]) -> None:
        self._settings = settings
        self._fill = [255 * value for value in mean]
        self.draws = 2 * settings.rand_augment + (_JITTER_DRAWS if settings.color_jitter else 0)

    def __call__(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Change ``(N, 3, H, W)`` uint8 by ``(N, self.draws)`` random numbers on the CPU."""
        for step in range(self._settings.rand_augment):
            pixels = self._rand_augment(pixels, draws[:, 2 * step : 2 * step + 2])
        if self._settings.color_jitter:
            factors = 1 + self._settings.color_jitter * (2 * draws[:, -6:-3] - 1)
            pixels = _jitter(pixels, factors, draws[:, -3:].argsort(dim=1))
        return pixels

    def _rand_augment(self, pixels: Tensor, draws: Tensor) -> Tensor:
        result, strength = pixels.clone(), self._settings.magnitude / 10
        for half, signed in enumerate((strength, -strength)):
            operations = _operations(signed, self._fill, pixels.shape[2:])
            kinds = (draws[:, 0] * len(operations)).long()
            for kind, operation in enumerate(operations):
                chosen = (kinds == kind) & ((draws[:, 1] >= 0.5) == half)
                if operation is not None and chosen.any():
                    index = chosen.nonzero()[:, 0].to(pixels.device)
                    result[index] = operation(pixels[index])
        return result


def _operations(
    strength: float, fill: list[float], size: Sequence[int]
) -> tuple[Callable[[Tensor], Tensor] | None, ...]:
    """RandAugment's operations; the sign of the strength, −1 to 1, is that of a direction."""
    height, width = size
    bilinear = InterpolationMode.BILINEAR
    warp = partial(
        F.affine,
        angle=0.0,
        translate=[0.0, 0.0],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=bilinear,
        fill=fill,
    )
    slope = math.degrees(math.atan(0.3 * strength))
    shift, factor = 150 / 331 * strength, 1 + 0.9 * strength
    return (
        None,
        partial(warp, shear=[slope, 0.0], center=[0.0, 0.0]),
        partial(warp, shear=[0.0, slope], center=[0.0, 0.0]),
        partial(warp, translate=[int(shift * width), 0.0]),
        partial(warp, translate=[0.0, int(shift * height)]),
        partial(F.rotate, angle=30 * strength, interpolation=bilinear, fill=fill),
        partial(F.adjust_brightness, brightness_factor=factor),
        partial(F.adjust_saturation, saturation_factor=factor),
        partial(F.adjust_contrast, contrast_factor=factor),
        partial(F.adjust_sharpness, sharpness_factor=factor),
        partial(F.posterize, bits=8 - round(4 * abs(strength))),
        partial(F.solarize, threshold=255 * (1 - abs(strength))),
        F.autocontrast,
        F.equalize,
    )


def _jitter(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of every image, in an order of its own.

    Pixels are ``(N, 3, H, W)`` uint8; factors of the three operations and their order ``(N, 3)``.
    """
    result, luma = pixels.float(), torch.tensor(_LUMA, device=pixels.device)[:, None, None]
    for step in order.T:
        for kind in range(3):
            chosen = (step == kind).nonzero()[:, 0]
            index, factor = chosen.to(pixels.device), factors[chosen, kind].to(pixels.device)
            own = result[index]
            gray = (own * luma).sum(1, keepdim=True)
            base = (0 * gray, gray.mean((2, 3), keepdim=True), gray)[kind]
            result[index] = (base + factor[:, None, None, None] * (own - base)).clamp_(0, 255)
    return result.round_()


class BatchMixup:
    """timm's Mixup and CutMix, by a seed of their own."""

    def __init__(self, settings: AugmentSettings, classes: int) -> None:
        self._mixup = Mixup(
            settings.mixup, settings.cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images mixed in pairs, ``(N, C, H, W)`` of even N, and shares of classes, ``(N, C)``."""
        # timm draws from numpy's global generator.
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            mixed, targets = self._mixup(images, labels)
        finally:
            np.random.set_state(before)
        return mixed, targets
