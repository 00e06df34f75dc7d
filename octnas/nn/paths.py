"""The four paths of an octave convolution (paper, §3.3), forward and backward.

At stride 1, with f a convolution and W the one kernel in its four blocks::

    y_high = f(x_high; W_hh) + upsample(f(x_low; W_lh))
    y_low  = f(x_low; W_ll)  + f(pool(x_high); W_hl)

A pooled stride of 2 pools every input once more and then has nothing to upsample. Autograd would
keep every pooled map for the gradient of its kernel; `octave_conv` keeps the maps that were given,
which the network holds anyway, and pools again in backward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octnas.nn.layout import sound_layout
from octnas.nn.octave import (
    add_upsampled,
    low_mask,
    merge_channels,
    pool,
    pool_shares,
    split_channels,
    sum_pool,
)

Parts = tuple[Tensor | None, Tensor | None]
Kernels = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

# Source and target of H→H, H→L, L→H and L→L, 0 for high and 1 for low.
PATHS = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True, slots=True)
class Geometry:
    """What an octave convolution does, besides its kernel and bias.

    Attributes:
        low_in, low_out: low channels of input and output.
        groups_in, groups_out: in how many groups their channels are split, see `OctaveTensor`.
        groups, stride, padding, dilation: of the convolution at each resolution.
        pools: whether every input is pooled once more, in the place of a stride of 2.
        depthwise: every channel is a group of its own; then only H→H and L→L exist.
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


def octave_conv(
    high: Tensor, low: Tensor | None, weight: Tensor, bias: Tensor | None, how: Geometry
) -> Parts:
    """Convolve two resolutions; what has no channels is None.

    In eager mode the backward pass is the one written out below, and can be taken once; a
    compiler traces the forward pass and decides by itself what to compute again.

    Args:
        high: ``(N, C_high, H, W)``; C_high may be 0.
        low: ``(N, C_low, ⌈H/2⌉, ⌈W/2⌉)``.
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)``.
        how: the rest.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _forward(high, low, weight, bias, how)
    device = high.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Here and not inside, so that backward sees what forward has computed with.
        dtype = torch.get_autocast_dtype(device)
        high, weight = _cast(high, dtype), _cast(weight, dtype)
        low = None if low is None else _cast(low, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    parts: Parts = _OctaveConv.apply(high, low, weight, bias, how)
    return parts


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast does to the arguments of torch's convolutions: float64 stays as it is."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


def split_kernel(weight: Tensor, how: Geometry) -> Kernels:
    """The blocks H→H, H→L, L→H and L→L of a kernel; None where there are no channels.

    With one group they are views of the kernel.
    """
    kernels = [
        block.reshape(block.shape[0] * block.shape[1], -1, *weight.shape[2:])
        if block is not None and block.numel()
        else None
        for block in _blocks(weight, how)
    ]
    hh, hl, lh, ll = kernels
    return hh, hl, lh, ll


def _blocks(weight: Tensor, how: Geometry) -> Kernels:
    """Views of the four blocks, of shape (groups, rows, groups, columns, k, k)."""
    # Every group of a grouped kernel has its own columns, split as the group is.
    within = 1 if how.depthwise else how.groups_in // how.groups
    rows, columns = weight.shape[0] // how.groups_out, weight.shape[1] // within
    cut = weight.view(how.groups_out, rows, within, columns, *weight.shape[2:])
    low_rows = how.low_out // how.groups_out
    row_parts = [rows - low_rows, low_rows]
    if how.depthwise:
        high, low = torch.split_with_sizes(cut, row_parts, 1)
        return high, None, None, low
    low_columns = how.low_in // how.groups // within
    from_high, from_low = torch.split_with_sizes(cut, [columns - low_columns, low_columns], 3)
    return (  # type: ignore[return-value]
        *torch.split_with_sizes(from_high, row_parts, 1),
        *torch.split_with_sizes(from_low, row_parts, 1),
    )


def scale_kernel(weight: Tensor, scales: Tensor, how: Geometry) -> Tensor:
    """A kernel whose blocks H→H, H→L, L→H and L→L are each multiplied by a number.

    Every scale has a gradient, also where its block is empty.

    Args:
        weight: ``(C_out, C_in / groups, k, k)``.
        scales: ``(4,)``.
        how: where the blocks are.
    """
    low_out = low_mask(weight.shape[0], how.low_out, how.groups_out, like=weight)[:, None]
    if how.depthwise:
        low_in = low_out
    else:
        within = how.groups_in // how.groups
        low_in = low_mask(weight.shape[1], how.low_in // how.groups, within, like=weight)
    hh, hl, lh, ll = scales
    factors = torch.where(
        low_out, torch.where(low_in, ll, hl), torch.where(low_in, lh, hh)
    )  # (C_out, C_in / groups)
    return weight * factors[:, :, None, None]


def split_bias(bias: Tensor | None, how: Geometry) -> Parts:
    """The bias of the high and of the low output."""
    if bias is None:
        return None, None
    high, low = split_channels(bias, how.low_out, how.groups_out)
    return _or_none(high), _or_none(low)


def _or_none(part: Tensor) -> Tensor | None:
    return part if part.numel() else None


class Pooled:
    """A feature map, pooled as often as asked for, and no map twice."""

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
    """`_forward`, which keeps its inputs for backward and nothing else."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Parts:
        high, low, weight, _, ctx.how = args
        ctx.save_for_backward(high, low, weight)
        return _forward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd has gradients enabled here if, and only if, a graph of them is asked for.
        # torch's `once_differentiable` would drop it in silence where a gradient is constant.
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
    """The gradient of a map from those of the map and of what was pooled from it."""
    for times in (2, 1):
        pooled = grads[times]
        if pooled is not None:
            like = inputs[times - 1]
            grads[times - 1] = add_upsampled(grads[times - 1], pool_shares(pooled, like), like=like)
    return grads[0]


def _merge_kernels(grads: list[Tensor | None], weight: Tensor, how: Geometry) -> Tensor:
    """Undo `split_kernel`."""
    whole = torch.empty_like(weight)
    for block, grad in zip(_blocks(whole, how), grads, strict=True):
        if grad is not None and block is not None:
            block.copy_(grad.view(block.shape))
    return whole


def _merge_biases(grads: tuple[Tensor, ...], how: Geometry) -> Tensor:
    sums = [grad.sum((0, 2, 3)) for grad in grads if grad is not None]
    if len(sums) == 1:
        return sums[0]
    high, low = sums
    return merge_channels(high, low, how.groups_out, dim=0)
