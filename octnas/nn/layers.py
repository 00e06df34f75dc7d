"""The layers without kernels at two resolutions that octave feature maps pass through.

Batch normalisation of octave feature maps.

Channel attention on octave feature maps: one gate per channel, from means of both parts.
"""

from collections.abc import Callable
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


class EachPart(nn.Module):
    """What keeps the size and treats every value, or every channel, alike: on both parts."""

    # Named and typed as torch's own, which are of several minds.
    def forward(self, input: Any) -> Any:  # noqa: A002
        plain = super().forward
        return plain(input) if isinstance(input, Tensor) else each(plain, input)


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


class OctaveDropPath(DropPath):
    """Stochastic depth: an image's path is dropped at both resolutions or at none."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            kept: Tensor = super().forward(x)
            return kept
        if not self.training or not self.drop_prob:
            return x
        mask = super().forward(x.low.new_ones((x.low.shape[0], 1, 1, 1)))
        return each(lambda part: part * mask, x)


class OctaveDropBlock2d(DropBlock2d):
    """DropBlock: the same regions at both resolutions.

    The low part is weighted with the pooled mask, that is with the share of each 2×2 cell that is
    kept. Where channels are not coupled, each part draws its own blocks.
    """

    def forward(self, x: Features) -> Features:
        drop = super().forward
        if isinstance(x, Tensor):
            kept: Tensor = drop(x)
            return kept
        if not self.training or not self.drop_prob:
            return x
        if not self.couple_channels:
            return each(drop, x)
        images, _, height, width = x.high.shape
        mask = drop(x.low.new_ones((images, 1, height, width)))
        high = x.high * mask if x.high.shape[1] else x.high
        return OctaveTensor(high, x.low * pool(mask), x.groups)


class OctaveMaxPool2d(nn.MaxPool2d):
    """Max pooling of both parts, each at its own resolution, with the same kernel."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            pooled: Tensor = super().forward(x)
            return pooled

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


class OctaveBlurPool2d(BlurPool2d):
    """Anti-aliased subsampling of both parts, each at its own resolution.

    A part that is too small to be padded by reflection is padded with its border.
    """

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            blurred: Tensor = super().forward(x)
            return blurred
        return _shrink(self._blur, self._blur, x)

    def _blur(self, x: Tensor) -> Tensor:
        reflects = self.pad_mode != "reflect" or min(x.shape[-2:]) > max(self.padding)
        padded = F.pad(x, self.padding, mode=self.pad_mode if reflects else "replicate")
        # One filter for all channels, whatever their number.
        channels = x.shape[1]
        weight = self.filt[:1].expand(channels, 1, self.filt_size, self.filt_size)
        return F.conv2d(padded, weight, stride=self.stride, groups=channels)


def _shrink(
    operation: Callable[[Tensor], Tensor],
    operation_low: Callable[[Tensor], Tensor],
    x: OctaveTensor,
) -> OctaveTensor:
    """Apply operations that make maps smaller; the low size is half of the high one, rounded up.

    The one on the low part may give a row or column more than that.
    """
    low = operation_low(x.low)
    if x.high.shape[1]:
        high = operation(x.high)
    else:
        # Without high channels only the size goes on, as one channel of any value would have it.
        size = operation(x.low.new_empty((1, 1, *x.high.shape[-2:]))).shape[-2:]
        high = empty_high(low, *size)
    rows, columns = (-(-side // 2) for side in high.shape[-2:])
    return OctaveTensor(high, low[..., :rows, :columns], x.groups)


class OctaveGlobalPool2d(SelectAdaptivePool2d):
    """Global pooling: each part apart, then all channels side by side.

    The result has the channels in their order, so a classifier needs no last layer at α = 0.
    """

    def forward(self, x: Features) -> Tensor:
        plain = super().forward
        if isinstance(x, Tensor) or not x.high.shape[1]:
            pooled: Tensor = plain(x if isinstance(x, Tensor) else x.low)
            return pooled
        # "catavgmax" gives all averages, then all maxima.
        kinds = self.feat_mult()
        parts = zip(*(plain(part).chunk(kinds, dim=1) for part in (x.high, x.low)), strict=True)
        return torch.cat([merge_channels(high, low, x.groups) for high, low in parts], dim=1)


class OctaveAlign(nn.Module):
    """Bring an identity shortcut to the split of the residual stream it joins; no parameters.

    Where a stage begins with an identity shortcut, its stream meets the one before it, which may
    have another α.
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


class OctaveBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes both parts of an octave tensor.

    Parameters, buffers and their keys are those of ``torch.nn.BatchNorm2d``, in the order of the
    channels; with one group the first channels serve the high part, the last ones the low part.

    Shape:
        - Input: ``(N, C, H, W)`` or an `OctaveTensor` of C channels in all.
        - Output: the same.
    """

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        return super().forward(x) if isinstance(x, Tensor) else normalise(self, x, values_of(self))


class OctaveBatchNormAct2d(BatchNormAct2d):
    """timm's batch normalisation with an activation, on both parts of an octave tensor."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            normalised: Tensor = super().forward(x)
            return normalised
        activated: Features = self.act(self.drop(normalise(self, x, values_of(self))))
        return activated


@dataclass(frozen=True)
class NormValues:
    """What normalises each channel, ``(C,)`` each; None where there is none."""

    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def values_of(norm: nn.BatchNorm2d) -> NormValues:
    """The parameters and statistics of a batch norm itself; statistics are updated in place."""
    return NormValues(norm.running_mean, norm.running_var, norm.weight, norm.bias)


def normalise(norm: nn.BatchNorm2d, x: OctaveTensor, values: NormValues) -> OctaveTensor:
    """Normalise each part with its channels' values, and update the statistics among them."""
    tracks = norm.training and norm.track_running_stats
    uses_running = not norm.training or tracks
    low, groups = x.low_channels, x.groups
    stats = [values.mean, values.variance] if uses_running else [None, None]
    # With one group the halves are views, and their update is that of the whole.
    copies = tracks and groups > 1
    taken = [whole.clone() if copies and whole is not None else whole for whole in stats]
    means, variances, weights, biases = (
        _split(entry, low, groups) for entry in (*taken, values.weight, values.bias)
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


def _split(
    values: Tensor | None, low_channels: int, groups: int
) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if values is None else split_channels(values, low_channels, groups)


def count_batch(norm: nn.BatchNorm2d) -> float:
    """Count one batch, as torch does; the weight of its statistics in the running ones."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    if norm.momentum is None:  # cumulative average
        return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum


class OctaveSE(SEModule):
    """Squeeze-and-excitation (arXiv 1709.01507) over the channels of both resolutions."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gates(_squeeze(x, self.add_maxpool)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        gates: Tensor = self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))
        return gates


class OctaveEffectiveSE(EffectiveSEModule):
    """Effective squeeze-and-excitation (arXiv 1911.06667) over both resolutions."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gates(_squeeze(x, self.add_maxpool)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        gates: Tensor = self.gate(self.fc(squeezed))
        return gates


class OctaveEca(EcaModule):
    """Efficient channel attention (arXiv 1910.03151), across neighbours in timm's channel order."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gates(_squeeze(x)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        mixed = self.conv(squeezed.flatten(1).unsqueeze(1))  # (N, 1, C)
        if self.conv2 is not None:
            mixed = self.conv2(self.act(mixed))
        gates: Tensor = self.gate(mixed)
        return gates.view_as(squeezed)


def _squeeze(x: OctaveTensor, add_maximum: bool = False) -> Tensor:
    """One value per channel, in the order of the channels: ``(N, C, 1, 1)``."""
    high, low = (squeeze(part, add_maximum) for part in (x.high, x.low))
    return merge_channels(high, low, x.groups)


def squeeze(x: Tensor, add_maximum: bool = False) -> Tensor:
    """The mean of every channel, or the middle of mean and maximum: ``(N, C, 1, 1)``."""
    means = x.mean((2, 3), keepdim=True)
    return 0.5 * means + 0.5 * x.amax((2, 3), keepdim=True) if add_maximum else means


def _scale(x: OctaveTensor, gates: Tensor) -> OctaveTensor:
    if x.groups == 1:
        # Two slices and no split: of a split, inductor (torch 2.15) overwrites the gates in
        # backward while it still needs them, and all gradients before them are wrong.
        count = x.high.shape[1]
        high, low = gates[:, :count], gates[:, count:]
    else:
        high, low = split_channels(gates, x.low_channels, x.groups, dim=1)
    return OctaveTensor(x.high * high, x.low * low, x.groups)
