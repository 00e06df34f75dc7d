"""Feature maps at two resolutions, and moving channels between them.

Channels are ordered high first: of C channels, the first ``C - low`` are at full resolution and
the last ``low`` at half. Around a grouped convolution the same holds inside each group, so that
every group keeps channels of its own at both resolutions. A feature map without low channels is a
plain tensor, so that a network at α = 0 runs timm's own operations.
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
        groups: into how many equal groups the channels are cut before each is split; C_high and
            C_low are multiples of it, and both parts hold the groups one after another.
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
        elif self._split() != other._split():
            found = other._words()
        else:
            return
        raise ValueError(
            f"cannot add feature maps of different splits: {self._words()} and {found}; "
            "the two must share one site"
        )

    def _split(self) -> tuple[torch.Size, torch.Size, int]:
        return self.high.shape, self.low.shape, self.groups

    def _words(self) -> str:
        groups = "" if self.groups == 1 else f" in {self.groups} groups"
        return f"high {tuple(self.high.shape)}, low {tuple(self.low.shape)}{groups}"


Features = Tensor | OctaveTensor


def pool(x: Tensor) -> Tensor:
    """Average over 2×2 pixels; odd sides are rounded up, without counting padding.

    ``(N, C, H, W)`` to ``(N, C, ⌈H/2⌉, ⌈W/2⌉)``.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.avg_pool2d(x, fit_kernel(2, x), ceil_mode=True, count_include_pad=False)
    # The same for even sides, and faster: no border to look out for.
    return F.avg_pool2d(x, 2)


def fit_kernel(kernel: int | tuple[int, int], x: Tensor) -> tuple[int, int]:
    """A pooling kernel, along each side no larger than the map is.

    For what is rounded up without padding it is the same, but inference engines refuse to load a
    kernel that is larger than the map.
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
    """``there + upsample(x, like)``, in place where nothing traces it: a quarter at a time.

    Without ``there`` it is the upsampled map alone.
    """
    if there is None:
        return upsample(x, like)
    if torch.compiler.is_compiling():
        return there + upsample(x, like)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        quarter = there[..., row::2, column::2]
        quarter.add_(x[..., : quarter.shape[-2], : quarter.shape[-1]])
    return there


def sum_pool(grad: Tensor) -> Tensor:
    """The transpose of `upsample`: sums over 2×2 pixels. Runs in backward, never in an engine."""
    if grad.shape[-2] % 2 or grad.shape[-1] % 2:
        return F.avg_pool2d(grad, 2, ceil_mode=True, divisor_override=1)
    # Twice as fast, and exact.
    return F.avg_pool2d(grad, 2).mul_(4)


def pool_shares(grad: Tensor, like: Tensor) -> Tensor:
    """What `pool` gives back to each of the pixels of ``like`` that it has averaged.

    `upsample` of it is the transpose of `pool`.
    """
    shares = grad * 0.25
    if like.shape[-2] % 2:
        shares[..., -1, :] *= 2
    if like.shape[-1] % 2:
        shares[..., -1] *= 2
    return shares


def empty_high(low: Tensor, height: int, width: int) -> Tensor:
    """A high part without channels, which still carries the full resolution."""
    return low.new_empty((low.shape[0], 0, height, width))


def split_channels(
    values: Tensor, low_channels: int, groups: int = 1, dim: int = 0
) -> tuple[Tensor, Tensor]:
    """Cut what holds one entry per channel into that of the high and that of the low channels.

    With one group the parts are views of ``values``, else copies.

    Args:
        values: of C entries along ``dim``.
        low_channels: how many of them are low; a multiple of ``groups``, as C is.
        groups: how often the split is made, see `OctaveTensor`.
        dim: which dimension holds the channels.
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
    """Undo `split_channels`: one entry per channel again, in the order of the channels."""
    if not (high.shape[dim] and low.shape[dim]):
        return high if high.shape[dim] else low
    if groups == 1:
        return torch.cat([high, low], dim)
    parts = [part.unflatten(dim, (groups, part.shape[dim] // groups)) for part in (high, low)]
    return torch.cat(parts, dim + 1).flatten(dim, dim + 1)


def low_mask(channels: int, low_channels: int, groups: int, like: Tensor) -> Tensor:
    """Which channels are low, in the order of the channels: ``(channels,)`` bool."""
    own = channels // groups
    inside = torch.arange(own, device=like.device) >= own - low_channels // groups
    return inside.repeat(groups)


def each(operation: Callable[[Tensor], Tensor], x: OctaveTensor) -> OctaveTensor:
    """Apply an operation that leaves the size as it is to both parts."""
    high = operation(x.high) if x.high.shape[1] else x.high
    return OctaveTensor(high, operation(x.low), x.groups)


def resplit(x: Features, low_channels: int) -> Features:
    """Bring a feature map to another number of low channels, without parameters.

    Channels that become low are pooled, channels that become high are upsampled; none changes its
    place in the order.

    Args:
        x: ``(N, C, H, W)`` or an octave tensor of C channels in all, in one group.
        low_channels: how many of the C channels are low afterwards.
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
