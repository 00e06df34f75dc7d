"""The octave convolution: one weight, split into its four paths as it is used."""

from typing import Any

import torch
from torch import Tensor, nn

from octnas.architecture import STRIDE_MODES, StrideMode
from octnas.costs import low_channels
from octnas.errors import UnsupportedModelError, require
from octnas.nn.octave import Features, OctaveTensor, empty_high, pool, upsample


class OctaveConv2d(nn.Conv2d):
    """A convolution whose output, and input, may be split into two resolutions (paper, §3.3).

    Its ``weight`` has the shape of ``torch.nn.Conv2d``'s for every α, high channels first on both
    sides, and serves every α. The input's split is read off the incoming tensor; only the output's
    is an attribute. At α = 0 on both sides it is ``torch.nn.Conv2d``, bit for bit.

    A stride of 2 is average pooling followed by a convolution at stride 1 (paper, §3.3, "pooled"):
    always with ``stride_mode="paper"``; with ``"timm"`` except where α is 0 on both sides, which
    keeps the strided convolution. ``strided=True`` keeps it for every α (for a stem: the high part
    is the strided convolution of the image, the low part that of the pooled image).

    Args:
        alpha: octave ratio of the output, 0 to 1.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"paper"`` or ``"timm"``.
        strided: never pool for a stride; only for plain inputs.
        site: name of the site that α belongs to.
        *args, **kwargs: those of ``torch.nn.Conv2d``.

    Shape:
        - Input: ``(N, C_in, H, W)`` or an `OctaveTensor` of C_in channels in all.
        - Output: ``(N, C_out, H', W')`` where no channel is low, else an `OctaveTensor`.
    """

    low_channels: int

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.0,
        channel_multiple: int = 1,
        stride_mode: StrideMode = "timm",
        strided: bool = False,
        site: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check(self, channel_multiple, stride_mode)
        self._set_octave(channel_multiple, stride_mode, strided, site)
        self.set_alpha(alpha)

    @staticmethod
    def from_conv(
        conv: nn.Conv2d,
        *,
        channel_multiple: int = 1,
        stride_mode: StrideMode = "timm",
        strided: bool = False,
        site: str = "",
    ) -> "OctaveConv2d":
        """Turn a convolution into an octave convolution at α = 0, in place.

        Parameters, hooks and everything else that the module holds stay as they are; nothing is
        changed if it is refused.
        """
        _check(conv, channel_multiple, stride_mode)
        conv.__class__ = OctaveConv2d
        assert isinstance(conv, OctaveConv2d)
        conv._set_octave(channel_multiple, stride_mode, strided, site)
        return conv

    def _set_octave(
        self, channel_multiple: int, stride_mode: StrideMode, strided: bool, site: str
    ) -> None:
        self.channel_multiple = channel_multiple
        self.stride_mode = stride_mode
        self.strided = strided
        self.site = site
        self.low_channels = 0

    def set_alpha(self, alpha: float) -> None:
        """Set the octave ratio of the output, 0 to 1."""
        require(0.0 <= alpha <= 1.0, "alpha", alpha, "0 to 1")
        self.low_channels = low_channels(
            alpha, self.out_channels, self.channel_multiple, self.groups
        )

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        pools = self.stride != (1, 1) and not self.strided
        keeps_stride = not pools or self.stride_mode == "timm"
        if isinstance(x, Tensor) and self.low_channels == 0 and keeps_stride:
            return super().forward(x)
        if pools:
            return self._from_plain(_half_size(x), (1, 1))
        if isinstance(x, Tensor):
            return self._from_plain(x, self.stride)  # type: ignore[arg-type]
        if self.stride != (1, 1):
            raise ValueError("a strided octave convolution takes plain tensors only")
        return self._from_octave(x)

    def _conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        return torch.conv2d(x, weight, bias, stride, self.padding, self.dilation, self.groups)

    def _split_out(self) -> list[int]:
        return [self.out_channels - self.low_channels, self.low_channels]

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        if self.bias is None:
            return None, None
        high, low = self.bias.split(self._split_out())
        return high, low

    def _from_plain(self, x: Tensor, stride: tuple[int, int]) -> Features:
        """High from the input, low from the pooled input."""
        if self.low_channels == 0:
            return self._conv(x, self.weight, self.bias, stride)
        weight_high, weight_low = self.weight.split(self._split_out())
        bias_high, bias_low = self._biases()
        low = self._conv(pool(x), weight_low, bias_low, stride)
        if self.low_channels == self.out_channels:
            height, width = (-(-side // s) for side, s in zip(x.shape[-2:], stride, strict=True))
            return OctaveTensor(empty_high(low, height, width), low)
        return OctaveTensor(self._conv(x, weight_high, bias_high, stride), low)

    def _from_octave(self, x: OctaveTensor) -> Features:
        """The four paths: H→H, H→L (pooled first), L→H (upsampled after) and L→L."""
        sizes_in = [x.high.shape[1], x.low.shape[1]]
        from_high, from_low = self.weight.split(sizes_in, dim=1)
        bias_high, bias_low = self._biases()
        # L→H and L→L share their input, so one convolution serves both.
        from_low_part = self._conv(x.low, from_low, None)
        # Slices, since in-place activations may not touch what `split` gives.
        high_out = self.out_channels - self.low_channels
        low_to_high, low = from_low_part[:, :high_out], from_low_part[:, high_out:]
        has_high_out, has_low_out = (size > 0 for size in self._split_out())
        if sizes_in[0]:
            high_to_high, high_to_low = from_high.split(self._split_out())
            if has_low_out:
                low = low + self._conv(pool(x.high), high_to_low, bias_low)
        elif bias_low is not None:
            low = low + bias_low[:, None, None]
        if not has_high_out:
            # Not a slice of x.high: what follows works in place, and x.high is still needed.
            return OctaveTensor(empty_high(low, *x.high.shape[-2:]), low)
        high = upsample(low_to_high, like=x.high)
        if sizes_in[0]:
            high = self._conv(x.high, high_to_high, bias_high) + high
        elif bias_high is not None:
            high = high + bias_high[:, None, None]
        return OctaveTensor(high, low) if has_low_out else high


def unfit(conv: nn.Conv2d) -> str | None:
    """What keeps a convolution from working at two resolutions; None if nothing does."""
    if conv.groups != 1:
        return f"found {conv.groups} groups, allowed: 1"
    same = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    if conv.padding != same or any(k % 2 == 0 for k in conv.kernel_size):
        return f"found kernel {conv.kernel_size} with padding {conv.padding}, allowed: {same}"
    if conv.stride not in ((1, 1), (2, 2)) or conv.padding_mode != "zeros":
        return f"found stride {conv.stride}, padding mode {conv.padding_mode!r}"
    return None


def _check(conv: nn.Conv2d, channel_multiple: int, stride_mode: str) -> None:
    require(channel_multiple >= 1, "channel_multiple", channel_multiple, "1 or more")
    require(stride_mode in STRIDE_MODES, "stride_mode", stride_mode, ", ".join(STRIDE_MODES))
    if problem := unfit(conv):
        raise UnsupportedModelError(problem)


def _half_size(x: Features) -> Tensor:
    """All channels at half the high resolution, where the low ones already are."""
    if isinstance(x, Tensor):
        return pool(x)
    return torch.cat([pool(x.high), x.low], dim=1) if x.high.shape[1] else x.low
