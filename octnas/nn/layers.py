"""Layers other than convolutions, for octave feature maps.

Each is a subclass of a layer of torch or timm with the same parameters, buffers and keys, and
treats a plain tensor as that layer does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import (
    AvgPool2dSame,
    BatchNormAct2d,
    BlurPool2d,
    DropBlock2d,
    DropPath,
    EcaModule,
    EffectiveSEModule,
    SelectAdaptivePool2d,
    SEModule,
)
from timm.layers.activations import GELU
from torch import Tensor, nn
from torch.nn import functional as F

from octnas.nn.octave import (
    Features,
    OctaveTensor,
    each,
    empty_high,
    fit_kernel,
    merge_channels,
    pool,
    resplit,
    split_channels,
)


class OctaveLayer:
    """A mixin before a layer of torch or timm; subclasses say what to do with an octave tensor."""

    # Named and typed to fit all of torch's own.
    def forward(self, input: Any) -> Any:  # noqa: A002
        plain = super().forward  # type: ignore[misc]
        return plain(input) if isinstance(input, Tensor) else self.octave(input)

    def octave(self, x: OctaveTensor) -> Features:
        """The layer on an octave tensor."""
        raise NotImplementedError


class EachPart(OctaveLayer):
    """On both parts: what keeps the size and treats every value, or every channel, alike."""

    def octave(self, x: OctaveTensor) -> Features:
        return each(super().forward, x)


class OctaveReLU(EachPart, nn.ReLU):
    """ReLU on both parts."""


class OctaveReLU6(EachPart, nn.ReLU6):
    """ReLU6 on both parts."""


class OctaveLeakyReLU(EachPart, nn.LeakyReLU):
    """Leaky ReLU on both parts."""


class OctaveSiLU(EachPart, nn.SiLU):
    """SiLU (swish) on both parts."""


class OctaveGELU(EachPart, GELU):
    """timm's GELU on both parts."""


class OctaveMish(EachPart, nn.Mish):
    """Mish on both parts."""


class OctaveHardswish(EachPart, nn.Hardswish):
    """Hard swish on both parts."""


class OctaveDropout(EachPart, nn.Dropout):
    """Dropout of single values, on both parts."""


class OctaveDropout2d(EachPart, nn.Dropout2d):
    """Dropout of whole channels, each at its own resolution."""


class OctaveAvgPool2dSame(EachPart, AvgPool2dSame):
    """Average pooling at stride 1 of both parts, each at its own resolution."""


class OctaveDropPath(OctaveLayer, DropPath):
    """Stochastic depth: an image's path is dropped at both resolutions or at none."""

    def octave(self, x: OctaveTensor) -> Features:
        if not self.training or not self.drop_prob:
            return x
        mask = super().forward(x.low.new_ones((x.low.shape[0], 1, 1, 1)))
        return each(lambda part: part * mask, x)


class OctaveDropBlock2d(OctaveLayer, DropBlock2d):
    """DropBlock: the same regions at both resolutions.

    The low part is weighted with the pooled mask, that is with the share of each 2×2 cell that is
    kept. Where channels are not coupled, each part draws its own blocks.
    """

    def octave(self, x: OctaveTensor) -> Features:
        if not self.training or not self.drop_prob:
            return x
        if not self.couple_channels:
            return each(super().forward, x)
        images, _, height, width = x.high.shape
        mask = super().forward(x.low.new_ones((images, 1, height, width)))
        high = x.high * mask if x.high.shape[1] else x.high
        return OctaveTensor(high, x.low * pool(mask), x.groups)


class OctaveMaxPool2d(OctaveLayer, nn.MaxPool2d):
    """Max pooling of both parts, each at its own resolution, with the same kernel."""

    def octave(self, x: OctaveTensor) -> Features:
        def pool_low(low: Tensor) -> Tensor:
            return F.max_pool2d(
                low, self.kernel_size, self.stride, self.padding, self.dilation, ceil_mode=True
            )

        return _shrink(super().forward, pool_low, x)


class OctaveAvgPool2d(nn.AvgPool2d):
    """Average pooling of both parts, each at its own resolution, with the same kernel."""

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        if isinstance(x, Tensor):
            return self._average(x, self.ceil_mode)
        return _shrink(
            lambda high: self._average(high, self.ceil_mode),
            lambda low: self._average(low, ceil_mode=True),
            x,
        )

    def _average(self, x: Tensor, ceil_mode: bool) -> Tensor:
        rounds_up = ceil_mode and self.padding in (0, (0, 0))
        return F.avg_pool2d(
            x,
            fit_kernel(self.kernel_size, x) if rounds_up else self.kernel_size,
            self.stride,
            self.padding,
            ceil_mode=ceil_mode,
            count_include_pad=self.count_include_pad,
            divisor_override=self.divisor_override,
        )


class OctaveBlurPool2d(OctaveLayer, BlurPool2d):
    """Anti-aliased subsampling of both parts, each at its own resolution.

    A part too small for padding by reflection is padded by replication.
    """

    def octave(self, x: OctaveTensor) -> Features:
        return _shrink(self._blur, self._blur, x)

    def _blur(self, x: Tensor) -> Tensor:
        reflects = self.pad_mode != "reflect" or min(x.shape[-2:]) > max(self.padding)
        padded = F.pad(x, self.padding, mode=self.pad_mode if reflects else "replicate")
        # One filter for all channels, however many.
        channels = x.shape[1]
        weight = self.filt[:1].expand(channels, 1, self.filt_size, self.filt_size)
        return F.conv2d(padded, weight, stride=self.stride, groups=channels)


def _shrink(
    operation: Callable[[Tensor], Tensor],
    operation_low: Callable[[Tensor], Tensor],
    x: OctaveTensor,
) -> OctaveTensor:
    """Apply operations that reduce the size; the low size becomes half the high one, rounded up.

    ``operation_low`` may give an extra row or column.
    """
    low = operation_low(x.low)
    if x.high.shape[1]:
        high = operation(x.high)
    else:
        # The size alone, found with one channel.
        size = operation(x.low.new_empty((1, 1, *x.high.shape[-2:]))).shape[-2:]
        high = empty_high(low, *size)
    rows, columns = (-(-side // 2) for side in high.shape[-2:])
    return OctaveTensor(high, low[..., :rows, :columns], x.groups)


class OctaveGlobalPool2d(OctaveLayer, SelectAdaptivePool2d):
    """Global pooling of each part, concatenated in the order of the channels.

    So a classifier takes any α in the last layer.
    """

    def octave(self, x: OctaveTensor) -> Tensor:
        plain = super().forward
        if not x.high.shape[1]:
            pooled: Tensor = plain(x.low)
            return pooled
        # "catavgmax" gives all averages, then all maxima.
        kinds = self.feat_mult()
        parts = zip(*(plain(part).chunk(kinds, dim=1) for part in (x.high, x.low)), strict=True)
        return torch.cat([merge_channels(high, low, x.groups) for high, low in parts], dim=1)


class OctaveAlign(nn.Module):
    """Bring an identity shortcut to the split of the residual stream it joins; no parameters.

    Needed where a stage begins with an identity shortcut: the stage before may have another α.
    """

    def __init__(self, channels: int, site: str) -> None:
        super().__init__()
        self.channels = channels
        self.site = site
        self.low_channels = 0

    def forward(self, x: Features) -> Features:
        return resplit(x, self.low_channels)

    def extra_repr(self) -> str:
        return f"{self.channels}, site={self.site!r}"


class OctaveBatchNorm2d(OctaveLayer, nn.BatchNorm2d):
    """Batch normalisation of both parts, each channel with its own values.

    Shape:
        - Input: ``(N, C, H, W)`` or an `OctaveTensor` of C channels in all.
        - Output: the same.
    """

    def octave(self, x: OctaveTensor) -> Features:
        return normalise(self, x, values_of(self))


class OctaveBatchNormAct2d(OctaveLayer, BatchNormAct2d):
    """timm's batch normalisation with an activation, on both parts."""

    def octave(self, x: OctaveTensor) -> Features:
        activated: Features = self.act(self.drop(normalise(self, x, values_of(self))))
        return activated


@dataclass(frozen=True)
class NormValues:
    """Statistics and parameters of a batch norm, ``(C,)`` each or None."""

    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def values_of(norm: nn.BatchNorm2d) -> NormValues:
    """The values of a batch norm itself, whose statistics are updated in place."""
    return NormValues(norm.running_mean, norm.running_var, norm.weight, norm.bias)


def normalise(norm: nn.BatchNorm2d, x: OctaveTensor, values: NormValues) -> OctaveTensor:
    """Normalise each part with its channels' values, and update the statistics among them."""
    tracks = norm.training and norm.track_running_stats
    low, groups = x.low_channels, x.groups
    stats = [values.mean, values.variance] if tracks or not norm.training else [None, None]
    # With one group the halves are views of the statistics, and updated with them.
    copies = tracks and groups > 1
    taken = [whole.clone() if copies and whole is not None else whole for whole in stats]
    means, variances, weights, biases = (
        (None, None) if entry is None else split_channels(entry, low, groups)
        for entry in (*taken, values.weight, values.bias)
    )
    factor = count_batch(norm) if tracks else 0.0

    def part(x: Tensor, index: int) -> Tensor:
        if not x.shape[1]:
            return x
        return F.batch_norm(
            x,
            means[index],
            variances[index],
            weights[index],
            biases[index],
            training=norm.training or values.mean is None,
            momentum=factor,
            eps=norm.eps,
        )

    normalised = OctaveTensor(part(x.high, 0), part(x.low, 1), groups)
    if copies:
        for whole, (high_half, low_half) in zip(stats, (means, variances), strict=True):
            if whole is not None and high_half is not None and low_half is not None:
                whole.copy_(merge_channels(high_half, low_half, groups, dim=0))
    return normalised


def count_batch(norm: nn.BatchNorm2d) -> float:
    """Count a batch as torch does, and return its weight in the running statistics."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    if norm.momentum is None:  # cumulative average
        return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum


class OctaveAttention(OctaveLayer):
    """Channel attention: one gate per channel, from the means of both parts."""

    def octave(self, x: OctaveTensor) -> Features:
        gates = self.gates(merge_channels(self.squeeze(x.high), self.squeeze(x.low), x.groups))
        if x.groups == 1:
            # Two slices instead of a split, whose gates inductor (torch 2.15) overwrites in
            # backward while it still needs them: all gradients before them would be wrong.
            count = x.high.shape[1]
            high, low = gates[:, :count], gates[:, count:]
        else:
            high, low = split_channels(gates, x.low_channels, x.groups, dim=1)
        return OctaveTensor(x.high * high, x.low * low, x.groups)

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of every channel, or the middle of mean and maximum: ``(N, C, 1, 1)``."""
        means = x.mean((2, 3), keepdim=True)
        if getattr(self, "add_maxpool", False):
            return 0.5 * means + 0.5 * x.amax((2, 3), keepdim=True)
        return means

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel; ``(N, C, 1, 1)`` in and out."""
        raise NotImplementedError


class OctaveSE(OctaveAttention, SEModule):
    """Squeeze-and-excitation (arXiv 1709.01507) over the channels of both resolutions."""

    def gates(self, squeezed: Tensor) -> Tensor:
        gates: Tensor = self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))
        return gates


class OctaveEffectiveSE(OctaveAttention, EffectiveSEModule):
    """Effective squeeze-and-excitation (arXiv 1911.06667) over both resolutions."""

    def gates(self, squeezed: Tensor) -> Tensor:
        gates: Tensor = self.gate(self.fc(squeezed))
        return gates


class OctaveEca(OctaveAttention, EcaModule):
    """Efficient channel attention (arXiv 1910.03151), across neighbours in timm's channel order."""

    def gates(self, squeezed: Tensor) -> Tensor:
        mixed = self.conv(squeezed.flatten(1).unsqueeze(1))  # (N, 1, C)
        if self.conv2 is not None:
            mixed = self.conv2(self.act(mixed))
        gates: Tensor = self.gate(mixed)
        return gates.view_as(squeezed)


_LAYERS: tuple[type[nn.Module], ...] = (
    *(OctaveBatchNorm2d, OctaveBatchNormAct2d, OctaveReLU, OctaveReLU6, OctaveLeakyReLU),
    *(OctaveSiLU, OctaveGELU, OctaveMish, OctaveHardswish, OctaveDropout, OctaveDropout2d),
    *(OctaveDropPath, OctaveDropBlock2d, OctaveMaxPool2d, OctaveAvgPool2d, OctaveAvgPool2dSame),
    *(OctaveBlurPool2d, OctaveSE, OctaveEffectiveSE, OctaveEca, OctaveGlobalPool2d),
)
OCTAVE_LAYERS: Mapping[type[nn.Module], type[nn.Module]] = {
    layer.__bases__[-1]: layer for layer in _LAYERS
}
"""By the layer of torch or timm that each replaces."""
