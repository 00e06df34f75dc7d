"""Channels-last memory, and a way around what oneDNN spoils in it.

Its gradient of a strided 1×1 kernel writes beyond its memory where a channels-last input has fewer
channels than a vector of AVX2 holds (``jit_1x1:avx2``, uxlfoundation/oneDNN#6035; torch 2.14 with
oneDNN 3.12 dies of it). In the other layout the same convolution is sound.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_VECTOR = 8


def to_channels_last(model: nn.Module) -> None:
    """Let a network keep its weights in channels-last memory, in place, for training.

    Args:
        model: whose plain convolutions keep another layout where oneDNN needs it.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_spoilt(module.weight, module.stride):
            module.weight.data = _contiguous(module.weight.data)
            module.register_forward_pre_hook(_before_conv)


def sound_layout(x: Tensor, kernel: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Input and kernel of a convolution, in a layout in which its gradients are sound.

    Args:
        x: ``(N, C_in, H, W)``.
        kernel: ``(C_out, C_in / groups, k, k)``.
        stride: by dimension.
    """
    if x.device.type != "cpu":
        return x, kernel
    if _is_spoilt(kernel, stride):
        return x.contiguous(), _contiguous(kernel)
    # Torch's own gradient, where oneDNN has none of such numbers, refuses some parts of kernels.
    return x, kernel.contiguous() if kernel.dtype in (torch.bfloat16, torch.float16) else kernel


def _is_spoilt(kernel: Tensor, stride: Sequence[int]) -> bool:
    return max(stride) > 1 and kernel.shape[1] < _VECTOR and kernel.shape[2:] == (1, 1)


def _contiguous(kernel: Tensor) -> Tensor:
    """A copy: a 1×1 kernel counts as contiguous in both layouts, and oneDNN goes by the strides."""
    return kernel.clone(memory_format=torch.contiguous_format)


def _before_conv(_: nn.Conv2d, args: tuple[Tensor]) -> tuple[Tensor]:
    (x,) = args
    return (x.contiguous() if x.device.type == "cpu" else x,)
