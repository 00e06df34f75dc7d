"""Octave layers once more, slowly and from the paper's formulas alone; and test helpers.

Nothing here uses code of `octnas`: pooling, upsampling, splitting and the order of operations are
written anew from "Drop an Octave" (arXiv 1904.05049), §3.2 and §3.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Maps:
    """A feature map's two parts, each of which may have no channels at all.

    The channels are cut into groups, and the last ones of every group are low.
    """

    high: Tensor
    low: Tensor
    groups: int = 1

    @property
    def size(self) -> tuple[int, int]:
        return self.high.shape[-2], self.high.shape[-1]

    @property
    def channels(self) -> int:
        return self.high.shape[1] + self.low.shape[1]

    @property
    def places(self) -> tuple[list[int], list[int]]:
        return places(self.channels, self.low.shape[1], self.groups)


def places(channels: int, low: int, groups: int = 1) -> tuple[list[int], list[int]]:
    """Where the high and the low channels stand among all of them."""
    per_group, low_per_group = channels // groups, low // groups
    assert per_group * groups == channels
    assert low_per_group * groups == low
    is_low = [i % per_group >= per_group - low_per_group for i in range(channels)]
    return [i for i in range(channels) if not is_low[i]], [i for i in range(channels) if is_low[i]]


def spread(part: Tensor, at: list[int], channels: int) -> Tensor:
    """All channels, of which those at ``at`` are the part's and all others zero."""
    zeros = part.new_zeros(part.shape[0], channels, *part.shape[2:])
    return zeros.index_copy(1, torch.tensor(at, dtype=torch.long), part)


def per_channel(values: tuple[Tensor, Tensor], x: Maps) -> Tensor:
    """One value per channel, (N, C), from those of the high and of the low channels."""
    high, low = (spread(v, at, x.channels) for v, at in zip(values, x.places, strict=True))
    return high + low


def scale(x: Maps, factors: Tensor, shifts: Tensor | None = None) -> Maps:
    """Every channel times its factor, plus its shift; both of shape (N or 1, C)."""
    parts = []
    for part, at in zip((x.high, x.low), x.places, strict=True):
        scaled = part * factors[:, at, None, None]
        parts.append(scaled if shifts is None else scaled + shifts[:, at, None, None])
    return Maps(parts[0], parts[1], x.groups)


def plain(x: Tensor) -> Maps:
    return split(x, 0)


def split(x: Tensor, low: int, groups: int = 1) -> Maps:
    """The last ``low / groups`` channels of every group pooled."""
    high, lows = places(x.shape[1], low, groups)
    return Maps(x[:, high], pool(x[:, lows]), groups)


def pool(x: Tensor) -> Tensor:
    """Mean over 2×2 cells; at an odd border over the pixels that are there."""
    height, width = x.shape[-2:]
    border = (0, width % 2, 0, height % 2)
    cells = [F.pad(part, border) for part in (x, torch.ones_like(x))]
    total, count = (sum(c[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) for c in cells)
    return total / count


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel (i, j) comes from (⌊i/2⌋, ⌊j/2⌋)."""
    rows, columns = ([i // 2 for i in range(side)] for side in size)
    return x[:, :, rows][:, :, :, columns]


def octave_conv(
    x: Maps,
    weight: Tensor,
    bias: Tensor | None,
    low_out: int,
    *,
    padding: int,
    dilation: int = 1,
    stride: int = 1,
    pooled: bool = True,
    groups: int = 1,
    split_groups: int = 1,
) -> Maps:
    """Four convolutions, as in §3.3.

    Y^H = f(X^H; W^{H→H}) + upsample(f(X^L; W^{L→H}))
    Y^L = f(X^L; W^{L→L}) + f(pool(X^H); W^{H→L})

    Every path is the whole convolution of a map whose channels at the other resolution are zero,
    of which only the wanted channels are kept; so groups need no thought.

    A pooled stride of 2 pools every input once more, so that L→H needs no upsampling; one that is
    not pooled strides in every path, and takes plain inputs.
    """
    channels = weight.shape[1] * groups
    x_high, x_low = (
        spread(p, at, channels) for p, at in zip((x.high, x.low), x.places, strict=True)
    )
    high, low = places(weight.shape[0], low_out, split_groups)

    def f(part: Tensor, outputs: list[int], step: int = 1) -> Tensor:
        return F.conv2d(part, weight, None, step, padding, dilation, groups)[:, outputs]

    if stride == 1:
        y_high = f(x_high, high) + upsample(f(x_low, high), x.size)
        y_low = f(x_low, low) + f(pool(x_high), low)
    elif pooled:
        half = pool(x_high)
        y_high = f(half, high) + f(x_low, high)
        y_low = f(pool(x_low), low) + f(pool(half), low)
    else:
        assert x.low.shape[1] == 0
        y_high, y_low = f(x_high, high, stride), f(pool(x_high), low, stride)
    if bias is not None:
        y_high = y_high + bias[high].reshape(1, -1, 1, 1)
        y_low = y_low + bias[low].reshape(1, -1, 1, 1)
    return Maps(y_high, y_low, split_groups)


def resplit(x: Maps, low: int) -> Maps:
    """Every channel by itself: pooled, upsampled or left as it is."""
    have, channels = x.low.shape[1], x.channels
    full = [x.high[:, i : i + 1] for i in range(channels - have)]
    half = [x.low[:, i : i + 1] for i in range(have)]
    at_full = full + [upsample(channel, x.size) for channel in half]
    at_half = [pool(channel) for channel in full] + half
    none_high, none_low = x.high[:, :0], x.low[:, :0]
    return Maps(
        torch.cat([none_high, *at_full[: channels - low]], 1),
        torch.cat([none_low, *at_half[channels - low :]], 1),
    )


def blur_pool(x: Tensor, stride: int) -> Tensor:
    """1-2-1 in both directions, then every ``stride``-th pixel.

    Mirrored at the border; a map with a side of one pixel is continued by its border instead.
    """
    mirrors = min(x.shape[-2:]) > 1
    for dim in (2, 3):
        last = x.shape[dim] - 1
        before = [abs(i - 1) if mirrors else max(i - 1, 0) for i in range(last + 1)]
        after = [last - i for i in reversed(before)]
        sides = [x.index_select(dim, torch.tensor(at)) for at in (before, after)]
        x = (sides[0] + 2 * x + sides[1]) / 4
    return x[..., ::stride, ::stride]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm parameters and statistics that matter.

    timm starts the last one of every block at zero, so that a fresh network's logits are about
    1e-9 and any two of them compare as equal.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for name, value in module.state_dict().items():
            if name in ("weight", "running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name in ("bias", "running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) / 2)
    return model


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_sizeable(*tensors: Tensor) -> None:
    """Refuse to compare what is nearly nothing."""
    for tensor in tensors:
        assert tensor.abs().max() > 1e-2
        assert tensor.std() > 1e-3
        assert torch.isfinite(tensor).all()
