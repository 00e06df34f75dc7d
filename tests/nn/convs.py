"""One octave convolution against the reference: outputs and all gradients."""

import math

import torch
from torch import Tensor

from octnas import OctaveConv2d
from octnas.nn.octave import Features, OctaveTensor
from tests.nn import reference
from tests.nn.reference import Maps, assert_sizeable, images


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def features(channels: int, low: int, size: tuple[int, int], groups: int = 1) -> Maps:
    """Random maps in float64 whose gradients can be asked for."""
    half = tuple(math.ceil(side / 2) for side in size)
    return Maps(
        leaf(images(2, channels - low, *size, seed=1, dtype=torch.float64)),
        leaf(images(2, low, *half, seed=2, dtype=torch.float64)),
        groups,
    )


def octave(x: Maps) -> Features:
    """What octnas takes: a plain tensor where nothing is low."""
    return OctaveTensor(x.high, x.low, x.groups) if x.low.shape[1] else x.high


def parts(y: Features) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else [y.high, y.low]


def expected_of(conv: OctaveConv2d, x: Maps, *, pooled: bool) -> Maps:
    return reference.octave_conv(
        x,
        conv.weight,
        conv.bias,
        conv.low_channels,
        padding=conv.padding[0],  # type: ignore[arg-type]
        dilation=conv.dilation[0],
        stride=conv.stride[0],
        pooled=pooled,
        groups=conv.groups,
        split_groups=conv.split_groups,
    )


def check(conv: OctaveConv2d, x: Maps, expected: Maps, *, sizeable: bool = True) -> None:
    """Outputs and all gradients equal those that are expected."""
    y = conv(octave(x))
    assert isinstance(y, OctaveTensor) == (conv.low_channels > 0)
    wanted = [expected.high, expected.low][: len(parts(y))]
    for found, part in zip(parts(y), wanted, strict=True):
        assert found.shape == part.shape
        torch.testing.assert_close(found, part, rtol=1e-10, atol=1e-10)
        if part.numel() and sizeable:
            assert_sizeable(part)
    leaves = [part for part in (x.high, x.low, conv.weight, conv.bias) if part is not None]
    leaves = [part for part in leaves if part.numel()]
    slopes = [images(*part.shape, seed=5, dtype=torch.float64) for part in wanted]

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum(((y * s).sum() for y, s in zip(outputs, slopes, strict=True)), torch.zeros(()))
        return torch.autograd.grad(total, leaves)

    for found, wanted_gradient in zip(gradients(parts(y)), gradients(wanted), strict=True):
        torch.testing.assert_close(found, wanted_gradient, rtol=1e-10, atol=1e-10)
        if sizeable:
            assert_sizeable(wanted_gradient)
