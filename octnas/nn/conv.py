"""The octave convolution (arXiv 1904.05049, §3.3): one weight, split into four paths on use.

At stride 1, with f a convolution and W the kernel in its four blocks::

    y_high = f(x_high; W_hh) + upsample(f(x_low; W_lh))
    y_low  = f(x_low; W_ll)  + f(pool(x_high); W_hl)

A pooled stride of 2 pools every input once more, and then has nothing to upsample. Autograd would
keep every pooled map for the kernel's gradient; `octave_conv` keeps only its inputs, which the
network holds anyway, and pools them again in backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from octnas.errors import UnsupportedModelError, require
from octnas.nn.octave import (
    Features,
    OctaveTensor,
    add_upsampled,
    empty_high,
    low_mask,
    merge_channels,
    pool,
    pool_shares,
    resplit,
    split_channels,
    sum_pool,
)
from octnas.space.architecture import MOST, STRIDE_MODES, StrideMode
from octnas.space.costs import PATHS, low_channels

Parts = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What an octave convolution does, apart from its kernel and bias.

    Attributes:
        low_in, low_out: low channels of input and output.
        groups_in, groups_out: `OctaveTensor.groups` of input and output.
        groups, stride, padding, dilation: of the convolution at each resolution.
        pools: whether every input is pooled once more instead of a stride of 2.
        depthwise: every channel is its own group; only H→H and L→L exist.
    """

    low_in: int
    low_out: int
    groups_in: int
    groups_out: int
    groups: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    pools: bool
    depthwise: bool

    def steps(self, source: int, target: int) -> int:
        """How often a path pools its input; -1 if it upsamples its output instead."""
        return target - source + self.pools

    def out_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the high output, whether it has channels or not."""
        step = 2 if self.pools else self.stride[0]
        return -(-x.shape[-2] // step), -(-x.shape[-1] // step)


class OctaveConv2d(nn.Conv2d):
    """A convolution whose input and output may be split into two resolutions (paper, §3.3).

    ``weight`` has the shape of ``torch.nn.Conv2d``'s, high channels first on both sides, and serves
    every α. The input's split is read off the incoming tensor; only the output's is an attribute.
    At α = 0 on both sides it is ``torch.nn.Conv2d``, bit for bit.

    A stride of 2 is average pooling followed by a convolution at stride 1 (paper, §3.3, "pooled"):
    always with ``stride_mode="paper"``; with ``"timm"`` except where α is 0 on both sides, which
    keeps the strided convolution. ``strided=True`` keeps it for every α (for a stem: the high part
    is the strided convolution of the image, the low part that of the pooled image).

    A grouped convolution splits its channels inside each group, so that all four paths are grouped
    convolutions; the layers before and after it must split theirs in the same way. A depthwise
    convolution has no path between the resolutions.

    Args:
        alpha: octave ratio of the output, 0 to 1.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"paper"`` or ``"timm"``.
        strided: never pool instead of striding; only for plain inputs.
        split_groups: `OctaveTensor.groups` of the output; by default the convolution's groups, and
            1 if it is depthwise.
        site: name of the site that α belongs to.
        *args, **kwargs: those of ``torch.nn.Conv2d``.

    Raises:
        SettingError: an octave argument out of range.
        UnsupportedModelError: a padding, stride or kernel that two resolutions do not allow.

    Shape:
        - Input: ``(N, C_in, H, W)`` or an `OctaveTensor` of C_in channels in all.
        - Output: ``(N, C_out, H', W')`` where no channel is low, else an `OctaveTensor`.
    """

    low_channels: int
    channel_multiple: int
    stride_mode: StrideMode
    strided: bool
    split_groups: int
    site: str
    # One factor for each path, in the order of `PATHS`; only in a switchable supernet.
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
        self.from_conv(self, channel_multiple, stride_mode, strided, split_groups, site)
        self.set_alpha(alpha)

    @staticmethod
    def from_conv(
        conv: nn.Conv2d,
        channel_multiple: int = 1,
        stride_mode: StrideMode = "timm",
        strided: bool = False,
        split_groups: int | None = None,
        site: str = "",
    ) -> "OctaveConv2d":
        """Turn a convolution into an octave convolution at α = 0, in place.

        Parameters, hooks and everything else that the module holds are kept; if it is refused,
        nothing is changed.
        """
        require_octave(channel_multiple, stride_mode)
        own = 1 if is_depthwise(conv) else conv.groups
        if split_groups is not None:
            fits = split_groups >= 1 and split_groups % own == 0 == conv.out_channels % split_groups
            require(
                fits and (split_groups == 1 or not is_depthwise(conv)),
                "split_groups",
                split_groups,
                f"a multiple of {own} that divides the channels",
            )
        if problem := unfit(conv):
            raise UnsupportedModelError(problem)
        if not isinstance(conv, OctaveConv2d):
            conv.__class__ = OctaveConv2d
        assert isinstance(conv, OctaveConv2d)
        conv.channel_multiple = channel_multiple
        conv.stride_mode = stride_mode
        conv.strided = strided
        conv.split_groups = split_groups or own
        conv.site = site
        conv.low_channels = 0
        conv.register_parameter("path_scales", None)
        return conv

    def set_alpha(self, alpha: float) -> None:
        """Set the octave ratio of the output, 0 to 1."""
        require(0.0 <= alpha <= 1.0, "alpha", alpha, "0 to 1")
        self.low_channels = low_channels(
            alpha, self.out_channels, self.channel_multiple, self.split_groups
        )

    @property
    def depthwise(self) -> bool:
        """Whether no path crosses the resolutions."""
        return is_depthwise(self)

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        self._check_batch(x)
        if self.depthwise:
            x = resplit(x, self.low_channels)
        if isinstance(x, Tensor):
            how = self.geometry()
            if not self.low_channels and not how.pools:
                kernel = self.scaled_weight(how)
                if torch.is_grad_enabled():
                    x, kernel = sound_layout(x, kernel, self.stride)
                plain: Tensor = self._conv_forward(x, kernel, self.bias)
                return plain
            source, low_in = x, None
        else:
            how = self.geometry(x.low_channels, x.groups)
            source, low_in = x.high, x.low
        high, low = octave_conv(source, low_in, self.scaled_weight(how), self.bias, how)
        return to_features(high, low, source, how)

    def scaled_weight(self, how: Geometry) -> Tensor:
        """The kernel, in a switchable supernet with each block times its path's scale."""
        kernel, scales = self.fitted_weight(how), self.path_scales
        return kernel if scales is None else scale_kernel(kernel, scales, how)

    def fitted_weight(self, how: Geometry) -> Tensor:  # noqa: ARG002
        """The kernel; subclasses may fit it to the resolutions of the paths."""
        return self.weight

    def _check_batch(self, x: Features) -> None:
        plain = isinstance(x, Tensor)
        shape = x.shape if plain else x.high.shape  # type: ignore[union-attr]
        # A convolution that is entirely torch's own also takes single images.
        if len(shape) != 4 and not (plain and not self.low_channels and not self.geometry().pools):
            raise ValueError(
                f"an octave convolution takes batches (N, C, H, W), found {tuple(shape)}"
            )

    def geometry(self, low_in: int = 0, groups_in: int = 1) -> Geometry:
        """What the convolution does with ``low_in`` low channels in ``groups_in`` groups.

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


def to_features(high: Tensor | None, low: Tensor | None, source: Tensor, how: Geometry) -> Features:
    """The output of an octave convolution from its parts; None where there are no channels."""
    if low is None:
        assert high is not None
        return high
    if high is None:
        high = empty_high(low, *how.out_size(source))
    return OctaveTensor(high, low, how.groups_out)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel is its own group."""
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def unfit(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot work at two resolutions; None if it can."""
    same = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    if conv.padding != same or any(k % 2 == 0 for k in conv.kernel_size):
        return f"found kernel {conv.kernel_size} with padding {conv.padding}, allowed: {same}"
    if conv.stride not in ((1, 1), (2, 2)) or conv.padding_mode != "zeros":
        return f"found stride {conv.stride}, padding mode {conv.padding_mode!r}"
    return None


def require_octave(channel_multiple: object, stride_mode: object) -> None:
    """Raise `SettingError` unless octave convolutions take both values."""
    fits = isinstance(channel_multiple, Integral) and 1 <= int(channel_multiple) <= MOST
    require(fits, "channel_multiple", channel_multiple, f"1 to {MOST}, a whole number")
    require(stride_mode in STRIDE_MODES, "stride_mode", stride_mode, ", ".join(STRIDE_MODES))


def octave_conv(
    high: Tensor, low: Tensor | None, weight: Tensor, bias: Tensor | None, how: Geometry
) -> Parts:
    """Convolve two resolutions; a part without channels is None.

    In eager mode the backward pass is `_OctaveConv.backward` and can be taken once. A compiler
    traces the forward pass and decides itself what to recompute.

    Args:
        high: ``(N, C_high, H, W)``; C_high may be 0.
        low: ``(N, C_low, ⌈H/2⌉, ⌈W/2⌉)``.
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)``.
        how: everything else.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _forward(high, low, weight, bias, how)
    device = high.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Here and not inside, so that backward sees the dtype of forward.
        dtype = torch.get_autocast_dtype(device)
        high, weight = _cast(high, dtype), _cast(weight, dtype)
        low = None if low is None else _cast(low, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    parts: Parts = _OctaveConv.apply(high, low, weight, bias, how)
    return parts


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast casts the arguments of convolutions: float64 is kept."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


def split_kernel(weight: Tensor, how: Geometry) -> list[Tensor | None]:
    """The blocks H→H, H→L, L→H and L→L of a kernel; None where there are no channels.

    With one group they are views of the kernel.
    """
    return [
        block.reshape(block.shape[0] * block.shape[1], -1, *weight.shape[2:])
        if block is not None and block.numel()
        else None
        for block in kernel_blocks(weight, how)
    ]


def kernel_blocks(weight: Tensor, how: Geometry) -> list[Tensor | None]:
    """Views of the four blocks, of shape (groups, rows, groups, columns, k, k)."""
    # Every group of a grouped kernel has columns of its own, split as the group is.
    within = 1 if how.depthwise else how.groups_in // how.groups
    rows, columns = weight.shape[0] // how.groups_out, weight.shape[1] // within
    cut = weight.view(how.groups_out, rows, within, columns, *weight.shape[2:])
    low_rows = how.low_out // how.groups_out
    row_parts = [rows - low_rows, low_rows]
    if how.depthwise:
        high, low = torch.split_with_sizes(cut, row_parts, 1)
        return [high, None, None, low]
    low_columns = how.low_in // how.groups // within
    from_high, from_low = torch.split_with_sizes(cut, [columns - low_columns, low_columns], 3)
    return [
        *torch.split_with_sizes(from_high, row_parts, 1),
        *torch.split_with_sizes(from_low, row_parts, 1),
    ]


def scale_kernel(weight: Tensor, scales: Tensor, how: Geometry) -> Tensor:
    """A kernel ``(C_out, C_in / groups, k, k)`` with each block times one of four scales.

    Every scale has a gradient, even if its block is empty.
    """
    low_out, low_in = low_sides(weight, how)
    hh, hl, lh, ll = scales
    # (C_out, C_in / groups)
    factors = torch.where(low_out, torch.where(low_in, ll, hl), torch.where(low_in, lh, hh))
    return weight * factors[:, :, None, None]


def low_sides(weight: Tensor, how: Geometry) -> tuple[Tensor, Tensor]:
    """Which rows and columns of a kernel are low, bool, to be broadcast to its first two axes."""
    low_out = low_mask(weight.shape[0], how.low_out, how.groups_out, like=weight)[:, None]
    if how.depthwise:
        return low_out, low_out
    within = how.groups_in // how.groups
    return low_out, low_mask(weight.shape[1], how.low_in // how.groups, within, like=weight)


def split_bias(bias: Tensor | None, how: Geometry) -> Parts:
    """The bias of the high and of the low output; None where there are no channels."""
    if bias is None:
        return None, None
    high, low = split_channels(bias, how.low_out, how.groups_out)
    return high if high.numel() else None, low if low.numel() else None


class Pooled:
    """A feature map and its pooled versions, each computed once."""

    def __init__(self, x: Tensor | None) -> None:
        self._levels = [x]

    def __getitem__(self, times: int) -> Tensor:
        while len(self._levels) <= times:
            self._levels.append(pool(self[-1]))
        found = self._levels[times]
        assert found is not None
        return found


def _forward(
    high: Tensor, low: Tensor | None, weight: Tensor, bias: Tensor | None, how: Geometry
) -> Parts:
    inputs = Pooled(high), Pooled(low)
    biases = split_bias(bias, how)
    parts: list[Tensor | None] = [None, None]
    for (source, target), kernel in zip(PATHS, split_kernel(weight, how), strict=True):
        if kernel is None:
            continue
        steps, there = how.steps(source, target), parts[target]
        y = torch.conv2d(
            inputs[source][max(steps, 0)],
            kernel,
            biases[target] if there is None else None,
            how.stride,
            how.padding,
            how.dilation,
            kernel.shape[0] if how.depthwise else how.groups,
        )
        if steps < 0:
            y = add_upsampled(there, y, like=high)
        elif there is not None:
            y = there.add_(y)
        parts[target] = y
    return parts[0], parts[1]


class _OctaveConv(torch.autograd.Function):
    """`_forward`, which saves nothing but its inputs for backward."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Parts:
        high, low, weight, _, ctx.how = args
        ctx.save_for_backward(high, low, weight)
        return _forward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients are enabled here only under create_graph=True. torch's `once_differentiable`
        # would silently drop that graph where a gradient is constant.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "an octave convolution can be differentiated once only; take its gradient without "
                "create_graph=True"
            )
        high, low, weight = ctx.saved_tensors
        how: Geometry = ctx.how
        needs_high, needs_low, needs_weight, needs_bias, _ = ctx.needs_input_grad
        inputs, needs = (Pooled(high), Pooled(low)), (needs_high, needs_low)
        # Gradients of the inputs, by how often they were pooled.
        found: tuple[list[Tensor | None], ...] = ([None] * 3, [None] * 3)
        kernel_grads: list[Tensor | None] = []
        for (source, target), kernel in zip(PATHS, split_kernel(weight, how), strict=True):
            if kernel is None:
                kernel_grads.append(None)
                continue
            steps, grad = how.steps(source, target), grads[target]
            if steps < 0:
                grad = sum_pool(grad)
            times = max(steps, 0)
            grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward.default(
                grad,
                *sound_layout(inputs[source][times], kernel, how.stride),
                None,
                how.stride,
                how.padding,
                how.dilation,
                False,
                (0, 0),
                kernel.shape[0] if how.depthwise else how.groups,
                (needs[source], needs_weight, False),
            )
            kernel_grads.append(grad_kernel)
            if needs[source]:
                there = found[source][times]
                found[source][times] = grad_x if there is None else there.add_(grad_x)
        return (
            _unpool(found[0], inputs[0]) if needs_high else None,
            _unpool(found[1], inputs[1]) if needs_low else None,
            _merge_kernels(kernel_grads, weight, how) if needs_weight else None,
            _merge_biases(grads, how) if needs_bias else None,
            None,
        )


def _unpool(grads: list[Tensor | None], inputs: Pooled) -> Tensor | None:
    """The gradient of a map from the gradients of the map and of its pooled versions."""
    for times in (2, 1):
        pooled = grads[times]
        if pooled is not None:
            like = inputs[times - 1]
            grads[times - 1] = add_upsampled(grads[times - 1], pool_shares(pooled, like), like=like)
    return grads[0]


def _merge_kernels(grads: list[Tensor | None], weight: Tensor, how: Geometry) -> Tensor:
    """Undo `split_kernel`."""
    whole = torch.empty_like(weight)
    for block, grad in zip(kernel_blocks(whole, how), grads, strict=True):
        if grad is not None and block is not None:
            block.copy_(grad.view(block.shape))
    return whole


def _merge_biases(grads: tuple[Tensor, ...], how: Geometry) -> Tensor:
    sums = [grad.sum((0, 2, 3)) for grad in grads if grad is not None]
    if len(sums) == 1:
        return sums[0]
    high, low = sums
    return merge_channels(high, low, how.groups_out, dim=0)


# oneDNN's gradient of a strided 1×1 kernel writes out of bounds where a channels-last input has
# fewer channels than an AVX2 vector (``jit_1x1:avx2``, uxlfoundation/oneDNN#6035; torch 2.14 with
# oneDNN 3.12 crashes). In contiguous layout the same convolution is sound.
_VECTOR = 8


def to_channels_last(model: nn.Module) -> None:
    """Bring a network's weights to channels-last memory for training, in place.

    Plain convolutions that oneDNN crashes on in that layout keep the contiguous one.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_unsound(module.weight, module.stride):
            module.weight.data = _contiguous(module.weight.data)
            module.register_forward_pre_hook(_before_conv)


def sound_layout(x: Tensor, kernel: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Input ``(N, C_in, H, W)`` and kernel in a layout whose gradients are sound."""
    if x.device.type != "cpu":
        return x, kernel
    if _is_unsound(kernel, stride):
        return x.contiguous(), _contiguous(kernel)
    # Where oneDNN lacks a half-precision gradient, torch's own refuses some views of kernels.
    return x, kernel.contiguous() if kernel.dtype in (torch.bfloat16, torch.float16) else kernel


def _is_unsound(kernel: Tensor, stride: Sequence[int]) -> bool:
    return max(stride) > 1 and kernel.shape[1] < _VECTOR and kernel.shape[2:] == (1, 1)


def _contiguous(kernel: Tensor) -> Tensor:
    # A copy: a 1×1 kernel counts as contiguous in both layouts, and oneDNN goes by the strides.
    return kernel.clone(memory_format=torch.contiguous_format)


def _before_conv(_: nn.Conv2d, args: tuple[Tensor]) -> tuple[Tensor]:
    (x,) = args
    return (x.contiguous() if x.device.type == "cpu" else x,)
