"""Augmentation of whole batches, on the device that trains."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torchvision.transforms import v2

from octnas.data.batches import seeded
from octnas.data.settings import AugmentSettings

RATIO = (3 / 4, 4 / 3)
_TRIES = 10
# A batch is cut into so many groups, each with its own draw of the colour operations.
_GROUPS = 8


class BatchAugment:
    """Random crop and flip of every image, then colour operations; uint8 in, normalised out.

    Crops are those of `torchvision.transforms.v2.RandomResizedCrop`, drawn for each image and read
    bilinearly. RandAugment and colour jitter are torchvision's, which change a whole batch alike,
    and so work on eighths of the batch.

    Args:
        settings: what to do.
        size: height and width of the result.
        mean, std: of the pixel values as a share of the brightest, by channel.
        device: where to work.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._settings, self._size, self._device = settings, size, device
        self._normalise = Normalise(mean, std, device)
        self._colour = _colour(settings)
        self._memory = Memory()

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment ``(N, H, W, 3)`` uint8, by a seed alone; ``(N, 3, *size)`` float32."""
        generator = torch.Generator().manual_seed(seed)
        boxes = random_boxes(len(images), images.shape[1:3], self._settings.scale, generator)
        flips = torch.rand(len(images), generator=generator) < self._settings.hflip
        moved = images.to(self._device, non_blocking=True)
        pixels = crop(moved, boxes, flips, self._size, self._memory)
        if self._colour is not None:
            with seeded(seed):
                pixels = self._recolour(pixels.round().clamp(0, 255).to(torch.uint8)).float()
        return self._normalise(pixels)

    def _recolour(self, pixels: Tensor) -> Tensor:
        assert self._colour is not None
        groups = pixels.chunk(min(_GROUPS, len(pixels)))
        return torch.cat([self._colour(group) for group in groups])


class Normalise:
    """Pixels of 0 to 255 by mean and standard deviation, in place."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(std, device=device)[:, None, None] * 255)

    def __call__(self, pixels: Tensor) -> Tensor:
        """``(N, C, H, W)`` float32."""
        return pixels.sub_(self._mean).mul_(self._scale)


def random_boxes(
    count: int, size: Sequence[int], smallest: float, generator: torch.Generator
) -> Tensor:
    """Boxes of crops as `RandomResizedCrop` draws them: ``(count, 4)``, top, left, height, width.

    Args:
        count: how many.
        size: height and width of the image.
        smallest: share of its area that a crop keeps at least.
        generator: of the draws.
    """
    height, width = size
    shape = (_TRIES, count)
    area = height * width * torch.empty(shape).uniform_(smallest, 1, generator=generator)
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = torch.empty(shape).uniform_(low, high, generator=generator).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    # The first that fits; where none does, as much of the middle as the ratios allow.
    first = fits.int().argmax(0, keepdim=True)
    none = ~fits.any(0)
    widest = round(min(width, height * RATIO[1]))
    highest = round(min(height, width / RATIO[0]))
    chosen_w = widths.gather(0, first)[0].masked_fill(none, widest)
    chosen_h = heights.gather(0, first)[0].masked_fill(none, highest)
    room = torch.stack([height - chosen_h, width - chosen_w])
    place = (torch.rand((2, count), generator=generator) * (room + 1)).floor().minimum(room)
    top, left = torch.where(none, (room / 2).floor(), place)
    return torch.stack([top, left, chosen_h, chosen_w], dim=1)


class Memory:
    """Tensors that are written to again and again.

    Where a batch takes some megabytes, the system needs longer to hand out fresh memory than a
    crop takes (four times as long on a virtual machine).
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def of(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The float32 tensor of a name, of whatever it held; another one for another shape."""
        there = self._tensors.get(name)
        if there is None or there.shape != shape or there.device != device:
            there = self._tensors[name] = torch.empty(shape, device=device)
        return there


def crop(
    images: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: tuple[int, int],
    memory: Memory | None = None,
) -> Tensor:
    """Every image's box at another size, bilinearly; mirrored where asked for.

    Args:
        images: ``(N, H, W, C)`` uint8.
        boxes: ``(N, 4)``: top, left, height and width in pixels.
        flips: ``(N,)`` bool.
        size: height and width of the result.
        memory: for what is needed on the way; fresh memory without it.

    Returns:
        ``(N, C, *size)`` float32, 0 to 255.
    """
    memory, device = memory or Memory(), images.device
    pixels = memory.of("pixels", tuple(images.shape), device).copy_(images)
    top, left, height, width = boxes.unbind(1)
    # Where in the image each row and column of the result is read, −1 and 1 being its borders.
    # That is `affine_grid` for boxes, at a fifth of its time.
    rows = _places(top, height, images.shape[1], size[0])
    columns = _places(left, width, images.shape[2], size[1])
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    grid = memory.of("grid", (len(boxes), *size, 2), device)
    grid[..., 0] = columns[:, None, :].to(device, non_blocking=True)
    grid[..., 1] = rows[:, :, None].to(device, non_blocking=True)
    pixels = pixels.permute(0, 3, 1, 2)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _places(begin: Tensor, length: Tensor, side: int, count: int) -> Tensor:
    """The middles of ``count`` equal steps along each box, ``(N, count)``."""
    steps = (torch.arange(count) + 0.5) / count
    return (begin[:, None] + length[:, None] * steps) * (2 / side) - 1


def _colour(settings: AugmentSettings) -> v2.Transform | None:
    strength = settings.color_jitter
    wanted: list[v2.Transform] = []
    if settings.rand_augment:
        # timm's scale has 10 steps, torchvision's 31.
        wanted.append(v2.RandAugment(settings.rand_augment, 3 * settings.magnitude))
    if strength:
        wanted.append(v2.ColorJitter(strength, strength, strength))
    return v2.Compose(wanted) if wanted else None


class BatchMixup:
    """timm's Mixup and CutMix, by a seed of their own.

    Args:
        settings: α of both.
        classes: how many.
    """

    def __init__(self, settings: AugmentSettings, classes: int) -> None:
        self._mixup = Mixup(
            settings.mixup, settings.cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images mixed in pairs, ``(N, C, H, W)`` of even N, and shares of classes, ``(N, C)``."""
        with seeded(seed):
            mixed, targets = self._mixup(images, labels)
        return mixed, targets
