"""The octave convolution: one weight, split into its four paths as it is used."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from octnas.architecture import MOST, STRIDE_MODES, StrideMode
from octnas.costs import low_channels
from octnas.errors import UnsupportedModelError, require
from octnas.nn.layout import sound_layout
from octnas.nn.octave import Features, OctaveTensor, empty_high, resplit
from octnas.nn.paths import Geometry, octave_conv, scale_kernel


class OctaveConv2d(nn.Conv2d):
    """A convolution whose output, and input, may be split into two resolutions (paper, §3.3).

    Its ``weight`` has the shape of ``torch.nn.Conv2d``'s for every α, high channels first on both
    sides, and serves every α. The input's split is read off the incoming tensor; only the output's
    is an attribute. At α = 0 on both sides it is ``torch.nn.Conv2d``, bit for bit.

    A stride of 2 is average pooling followed by a convolution at stride 1 (paper, §3.3, "pooled"):
    always with ``stride_mode="paper"``; with ``"timm"`` except where α is 0 on both sides, which
    keeps the strided convolution. ``strided=True`` keeps it for every α (for a stem: the high part
    is the strided convolution of the image, the low part that of the pooled image).

    A grouped convolution splits its channels inside each group, so that all four paths are grouped
    convolutions; what feeds it, or is fed by it, must split its channels in the same way. In a
    depthwise one, whole channels are high or low as they are in the input.

    Args:
        alpha: octave ratio of the output, 0 to 1.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"paper"`` or ``"timm"``.
        strided: never pool for a stride; only for plain inputs.
        split_groups: in how many groups the output is split, see `OctaveTensor`; by default the
            convolution's own groups, and 1 if it is depthwise.
        site: name of the site that α belongs to.
        *args, **kwargs: those of ``torch.nn.Conv2d``.

    Shape:
        - Input: ``(N, C_in, H, W)`` or an `OctaveTensor` of C_in channels in all.
        - Output: ``(N, C_out, H', W')`` where no channel is low, else an `OctaveTensor`.
    """

    low_channels: int
    # One factor for each path, in the order of `octnas.nn.paths.PATHS`; only in a supernet.
    path_scales: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.0,
        channel_multiple: int = 1,
        stride_mode: StrideMode = "timm",
        strided: bool = False,
        split_groups: int | None = None,
        site: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set_octave(channel_multiple, stride_mode, strided, split_groups, site)
        self.set_alpha(alpha)

    @staticmethod
    def from_conv(
        conv: nn.Conv2d,
        *,
        channel_multiple: int = 1,
        stride_mode: StrideMode = "timm",
        strided: bool = False,
        split_groups: int | None = None,
        site: str = "",
    ) -> "OctaveConv2d":
        """Turn a convolution into an octave convolution at α = 0, in place.

        Parameters, hooks and everything else that the module holds stay as they are; nothing is
        changed if it is refused.
        """
        _check(conv, channel_multiple, stride_mode, split_groups)
        conv.__class__ = OctaveConv2d
        assert isinstance(conv, OctaveConv2d)
        conv._set_octave(channel_multiple, stride_mode, strided, split_groups, site)
        return conv

    def _set_octave(
        self,
        channel_multiple: int,
        stride_mode: StrideMode,
        strided: bool,
        split_groups: int | None,
        site: str,
    ) -> None:
        _check(self, channel_multiple, stride_mode, split_groups)
        self.channel_multiple = channel_multiple
        self.stride_mode = stride_mode
        self.strided = strided
        self.split_groups = split_groups or (1 if self.depthwise else self.groups)
        self.site = site
        self.low_channels = 0
        self.register_parameter("path_scales", None)

    def set_alpha(self, alpha: float) -> None:
        """Set the octave ratio of the output, 0 to 1."""
        require(0.0 <= alpha <= 1.0, "alpha", alpha, "0 to 1")
        self.low_channels = low_channels(
            alpha, self.out_channels, self.channel_multiple, self.split_groups
        )

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own: no path leads from high to low or back."""
        return is_depthwise(self)

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        self._check_batch(x)
        if self.depthwise:
            x = resplit(x, self.low_channels)
        if isinstance(x, Tensor):
            how = self.geometry()
            if not self.low_channels and not how.pools:
                kernel = self._kernel(how)
                if torch.is_grad_enabled():
                    x, kernel = sound_layout(x, kernel, self.stride)
                plain: Tensor = self._conv_forward(x, kernel, self.bias)
                return plain
            source, low_in = x, None
        else:
            how = self.geometry(x.low_channels, x.groups)
            source, low_in = x.high, x.low
        high, low = octave_conv(source, low_in, self._kernel(how), self.bias, how)
        if low is None:
            assert high is not None
            return high
        if high is None:
            high = empty_high(low, *how.out_size(source))
        return OctaveTensor(high, low, self.split_groups)

    def _kernel(self, how: Geometry) -> Tensor:
        return self.weight if self.path_scales is None else self.scaled_weight(how)

    def scaled_weight(self, how: Geometry) -> Tensor:
        """The kernel with each of its four blocks times its path's scale.

        Args:
            how: what decides where the blocks are.
        """
        assert self.path_scales is not None
        return scale_kernel(self.weight, self.path_scales, how)

    def _check_batch(self, x: Features) -> None:
        plain = isinstance(x, Tensor)
        shape = x.shape if plain else x.high.shape  # type: ignore[union-attr]
        # torch's own convolution takes single images, where it is all there is to do.
        if len(shape) != 4 and not (plain and not self.low_channels and not self.geometry().pools):
            raise ValueError(
                f"an octave convolution takes batches (N, C, H, W), found {tuple(shape)}"
            )

    def geometry(self, low_in: int = 0, groups_in: int = 1) -> Geometry:
        """What the convolution does with an input of so many low channels.

        Raises:
            ValueError: an input that it cannot take.
        """
        strided = self.stride != (1, 1)
        plain = low_in == self.low_channels == 0 and self.stride_mode == "timm"
        pools = strided and not self.strided and not plain
        if low_in and strided and not pools:
            raise ValueError("a strided octave convolution takes plain tensors only")
        takes = 1 if self.depthwise else self.groups
        if low_in and self.groups > 1 and groups_in != takes:
            raise ValueError(
                f"an octave convolution of {self.groups} groups takes feature maps split in "
                f"{takes}, found {groups_in}"
            )
        return Geometry(
            low_in=low_in,
            low_out=self.low_channels,
            groups_in=groups_in if low_in else self.groups,
            groups_out=self.split_groups,
            groups=self.groups,
            stride=(1, 1) if pools else self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            pools=pools,
            depthwise=self.depthwise,
        )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel is a group of its own."""
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def unfit(conv: nn.Conv2d) -> str | None:
    """What keeps a convolution from working at two resolutions; None if nothing does."""
    same = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    if conv.padding != same or any(k % 2 == 0 for k in conv.kernel_size):
        return f"found kernel {conv.kernel_size} with padding {conv.padding}, allowed: {same}"
    if conv.stride not in ((1, 1), (2, 2)) or conv.padding_mode != "zeros":
        return f"found stride {conv.stride}, padding mode {conv.padding_mode!r}"
    return None


def require_multiple(channel_multiple: object) -> None:
    """Raise `SettingError` unless channels can be rounded to a multiple of this."""
    fits = isinstance(channel_multiple, Integral) and 1 <= int(channel_multiple) <= MOST
    require(fits, "channel_multiple", channel_multiple, f"1 to {MOST}, a whole number")


def _check(
    conv: nn.Conv2d, channel_multiple: int, stride_mode: str, split_groups: int | None
) -> None:
    require_multiple(channel_multiple)
    require(stride_mode in STRIDE_MODES, "stride_mode", stride_mode, ", ".join(STRIDE_MODES))
    if split_groups is not None:
        own = 1 if is_depthwise(conv) else conv.groups
        fits = (
            split_groups >= 1
            and split_groups % own == 0
            and conv.out_channels % split_groups == 0
            and (split_groups == 1 or not is_depthwise(conv))
        )
        require(
            fits, "split_groups", split_groups, f"a multiple of {own} that divides the channels"
        )
    if problem := unfit(conv):
        raise UnsupportedModelError(problem)
