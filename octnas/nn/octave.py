"""Feature maps at two resolutions, and moving channels between them.

Channels are ordered high first: of C channels, the first ``C - low`` are at full resolution and
the last ``low`` at half. A feature map without low channels is a plain tensor, so that a network
at α = 0 runs timm's own operations.
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
        high: ``(N, C_high, H, W)``; C_high may be 0, the tensor then only carries the size.
        low: ``(N, C_low, ⌈H/2⌉, ⌈W/2⌉)`` with C_low > 0.
    """

    high: Tensor
    low: Tensor

    @property
    def low_channels(self) -> int:
        """Channels at half resolution."""
        return self.low.shape[1]

    def __add__(self, other: "OctaveTensor") -> "OctaveTensor":
        self._check_split(other)
        return OctaveTensor(self.high + other.high, self.low + other.low)

    def __radd__(self, other: object) -> "OctaveTensor":
        # torch has declined: what stands on the left has no low part.
        self._check_split(other)
        return NotImplemented

    def __iadd__(self, other: "OctaveTensor") -> "OctaveTensor":
        # timm's blocks write ``x += shortcut``; in place as for tensors, to keep no second copy.
        self._check_split(other)
        self.high.add_(other.high)
        self.low.add_(other.low)
        return self

    def _check_split(self, other: object) -> None:
        if not isinstance(other, OctaveTensor):
            found = f"a {type(other).__name__}"
        elif self.high.shape != other.high.shape or self.low.shape != other.low.shape:
            found = f"{tuple(other.high.shape)}, low {tuple(other.low.shape)}"
        else:
            return
        raise ValueError(
            "cannot add feature maps of different splits: "
            f"high {tuple(self.high.shape)}, low {tuple(self.low.shape)} and {found}; "
            "the two must share one site"
        )


Features = Tensor | OctaveTensor


def pool(x: Tensor) -> Tensor:
    """Average over 2×2 pixels; odd sides are rounded up, without counting padding.

    ``(N, C, H, W)`` to ``(N, C, ⌈H/2⌉, ⌈W/2⌉)``.
    """
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Repeat every pixel 2×2 (nearest neighbour) and crop to the size of ``like``."""
    height, width = like.shape[-2:]
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    return large[..., :height, :width]


def empty_high(low: Tensor, height: int, width: int) -> Tensor:
    """A high part without channels, which still carries the full resolution."""
    return low.new_empty((low.shape[0], 0, height, width))


def each(operation: Callable[[Tensor], Tensor], x: OctaveTensor) -> OctaveTensor:
    """Apply an operation that leaves the size as it is to both parts."""
    high = operation(x.high) if x.high.shape[1] else x.high
    return OctaveTensor(high, operation(x.low))


def resplit(x: Features, low_channels: int) -> Features:
    """Bring a feature map to another number of low channels, without parameters.

    Channels that become low are pooled, channels that become high are upsampled; none changes its
    place in the order.

    Args:
        x: ``(N, C, H, W)`` or an octave tensor of C channels in all.
        low_channels: how many of the C channels are low afterwards.
    """
    high, low = (x.high, x.low) if isinstance(x, OctaveTensor) else (x, None)
    have = 0 if low is None else low.shape[1]
    if low_channels == have:
        return x
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
