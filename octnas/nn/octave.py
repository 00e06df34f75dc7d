"""Feature maps at two resolutions, and moving channels between them.

Channels are ordered high first: of C channels, the first ``C - low`` are at full resolution and
the last ``low`` at half. Around a grouped convolution, each group is ordered so. A feature map
without low channels is a plain tensor, so that a network at α = 0 runs timm's own operations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class OctaveTensor:
    """A feature map whose last channels are at half resolution (paper, §3.2).

    Attributes:
        high: ``(N, C_high, H, W)``; with C_high = 0 it only carries the size.
        low: ``(N, C_low, ⌈H/2⌉, ⌈W/2⌉)`` with C_low > 0.
        groups: number of equal groups of channels, each of them split into high and low; both
            parts list the groups in order.
    """

    high: Tensor
    low: Tensor
    groups: int = 1

    @property
    def low_channels(self) -> int:
        """Channels at half resolution."""
        return self.low.shape[1]

    def __add__(self, other: "OctaveTensor") -> "OctaveTensor":
        self._check_split(other)
        return OctaveTensor(self.high + other.high, self.low + other.low, self.groups)

    def __radd__(self, other: object) -> "OctaveTensor":
        # torch declined: the left operand has no low part.
        self._check_split(other)
        return NotImplemented

    def __iadd__(self, other: "OctaveTensor") -> "OctaveTensor":
        # timm's blocks compute ``x += shortcut``; in place, as for tensors, to save a copy.
        self._check_split(other)
        self.high.add_(other.high)
        self.low.add_(other.low)
        return self

    def _check_split(self, other: object) -> None:
        if not isinstance(other, OctaveTensor):
            found = f"a {type(other).__name__}"
        elif self._split() != other._split():
            found = other._describe()
        else:
            return
        raise ValueError(
            f"cannot add feature maps of different splits: {self._describe()} and {found}; "
            "both must belong to one site"
        )

    def _split(self) -> tuple[torch.Size, torch.Size, int]:
        return self.high.shape, self.low.shape, self.groups

    def _describe(self) -> str:
        groups = "" if self.groups == 1 else f" in {self.groups} groups"
        return f"high {tuple(self.high.shape)}, low {tuple(self.low.shape)}{groups}"


Features = Tensor | OctaveTensor


def pool(x: Tensor) -> Tensor:
    """Average over 2×2 pixels; odd sides are rounded up, without counting padding.

    ``(N, C, H, W)`` to ``(N, C, ⌈H/2⌉, ⌈W/2⌉)``.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.avg_pool2d(x, fit_kernel(2, x), ceil_mode=True, count_include_pad=False)
    # The same for even sides, and faster.
    return F.avg_pool2d(x, 2)


def fit_kernel(kernel: int | tuple[int, int], x: Tensor) -> tuple[int, int]:
    """A pooling kernel cropped to the map, since inference engines refuse larger ones.

    With ``ceil_mode`` and no padding the result is the same.
    """
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return min(rows, x.shape[-2]), min(columns, x.shape[-1])


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Repeat every pixel 2×2 (nearest neighbour) and crop to the size of ``like``."""
    height, width = like.shape[-2:]
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    # A copy, since in-place activations may not touch a view.
    return large if large.shape[-2:] == like.shape[-2:] else large[..., :height, :width].clone()


def add_upsampled(there: Tensor | None, x: Tensor, like: Tensor) -> Tensor:
    """``there + upsample(x, like)``; in eager mode in place, a quarter of the pixels at a time."""
    if there is None:
        return upsample(x, like)
    if torch.compiler.is_compiling():
        return there + upsample(x, like)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        quarter = there[..., row::2, column::2]
        quarter.add_(x[..., : quarter.shape[-2], : quarter.shape[-1]])
    return there


def sum_pool(grad: Tensor) -> Tensor:
    """The transpose of `upsample`: sums over 2×2 pixels."""
    if grad.shape[-2] % 2 or grad.shape[-1] % 2:
        return F.avg_pool2d(grad, 2, ceil_mode=True, divisor_override=1)
    # Twice as fast, and exact.
    return F.avg_pool2d(grad, 2).mul_(4)


def pool_shares(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of `pool` for each pixel of ``like``, before `upsample`.

    ``upsample(pool_shares(grad, like), like)`` is the transpose of `pool`.
    """
    shares = grad * 0.25
    if like.shape[-2] % 2:
        shares[..., -1, :] *= 2
    if like.shape[-1] % 2:
        shares[..., -1] *= 2
    return shares


def empty_high(low: Tensor, height: int, width: int) -> Tensor:
    """A high part without channels, which only carries the full resolution."""
    return low.new_empty((low.shape[0], 0, height, width))


def split_channels(
    values: Tensor, low_channels: int, groups: int = 1, dim: int = 0
) -> tuple[Tensor, Tensor]:
    """Split values along the channel dimension ``dim`` into those of high and of low channels.

    The number of channels and ``low_channels`` are multiples of ``groups``, see `OctaveTensor`.
    With one group the parts are views of ``values``, else copies.
    """
    low = low_channels // groups
    sizes = [values.shape[dim] // groups - low, low]
    if groups == 1:
        high_part, low_part = values.split(sizes, dim)
        return high_part, low_part
    grouped = values.unflatten(dim, (groups, sum(sizes)))
    # Contiguous also where a group has one channel: torch's batch norm misreads strided vectors.
    high_part, low_part = (
        part.flatten(dim, dim + 1).contiguous() for part in grouped.split(sizes, dim + 1)
    )
    return high_part, low_part


def merge_channels(high: Tensor, low: Tensor, groups: int = 1, dim: int = 1) -> Tensor:
    """Undo `split_channels`."""
    if not (high.shape[dim] and low.shape[dim]):
        return high if high.shape[dim] else low
    if groups == 1:
        return torch.cat([high, low], dim)
    parts = [part.unflatten(dim, (groups, part.shape[dim] // groups)) for part in (high, low)]
    return torch.cat(parts, dim + 1).flatten(dim, dim + 1)


def low_mask(channels: int, low_channels: int, groups: int, like: Tensor) -> Tensor:
    """Which channels are low, in the order of the channels: ``(channels,)`` bool."""
    size = channels // groups
    mask = torch.arange(size, device=like.device) >= size - low_channels // groups
    return mask.repeat(groups)


def each(operation: Callable[[Tensor], Tensor], x: OctaveTensor) -> OctaveTensor:
    """Apply an operation that keeps the size to both parts."""
    high = operation(x.high) if x.high.shape[1] else x.high
    return OctaveTensor(high, operation(x.low), x.groups)


def resplit(x: Features, low_channels: int) -> Features:
    """Pool or upsample channels so that ``low_channels`` are low; their order is kept.

    Args:
        x: ``(N, C, H, W)`` or an octave tensor of C channels in all.
        low_channels: number of low channels of the result.

    Raises:
        ValueError: a feature map split in several groups, unless nothing is to be done.
    """
    high, low = (x.high, x.low) if isinstance(x, OctaveTensor) else (x, None)
    have = 0 if low is None else low.shape[1]
    if low_channels == have:
        return x
    if isinstance(x, OctaveTensor) and x.groups > 1:
        raise ValueError(f"cannot move channels of a feature map split in {x.groups} groups")
    if low_channels > have:
        keep = high.shape[1] - (low_channels - have)
        kept, moved = high.split([keep, low_channels - have], dim=1)
        pooled = pool(moved)
        return OctaveTensor(kept, pooled if low is None else torch.cat([pooled, low], dim=1))
    assert low is not None  # have > low_channels >= 0
    moved, kept_low = low.split([have - low_channels, low_channels], dim=1)
    raised = upsample(moved, like=high)
    high = torch.cat([high, raised], dim=1) if high.shape[1] else raised
    return OctaveTensor(high, kept_low) if low_channels else high
