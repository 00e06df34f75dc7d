"""Kernels of a trained network, for convolutions that now work at half resolution.

There a kernel sees twice the area that it was trained for. Its taps are moved to the cells that
hold the pixels they used to weight. Along one axis, a tap at offset o (in pixels) of a convolution
of stride s contributes to an output that averages u pixels of the original output::

    w_t / u  at cell  ⌊(s·r + o) / v⌋  for r in 0 … u−1

with cells of v pixels. For three taps that is (w0/2, w1 + (w0 + w2)/2, w2/2) at stride 1, and where
pooling replaces a stride of 2, (w0, w1 + w2, 0) into high and (w0/2, w1 + w2 + w0/2, 0) into low.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from octnas.errors import UnsupportedModelError
from octnas.nn.conv import PATHS, Geometry, OctaveConv2d, kernel_blocks
from octnas.nn.octavize import geometries
from octnas.nn.supernet import activate, build
from octnas.nn.weights import load_weights
from octnas.space.search_space import SearchSpace

Model = TypeVar("Model", bound=nn.Module)

_ORIGINAL = "original_weight"


def rescale_kernels(model: Model) -> Model:
    """Fit the original's kernels to the network's present α, in place; returns the model.

    Call it once, on an octave network with the weights of the original: a second call would
    rescale again. Convolutions at α = 0 on both sides that keep their stride are not changed.
    The statistics of batch norms are not adapted, see `octnas.nn.supernet.recalibrate`.

    Args:
        model: an octave network, see `octnas.octavize`, of which α is not changed any more.

    Raises:
        UnsupportedModelError: not an octave network, or a switchable supernet, whose kernels serve
            every α; nothing has been changed then.
    """
    convs = _octave_convs(model)
    if not convs or any(conv.path_scales is not None for conv in convs):
        found = "a switchable supernet" if convs else f"a {type(model).__name__}"
        raise UnsupportedModelError(f"found {found}, allowed: an octave network of one α per site")
    for conv, how in geometries(model).items():
        assert isinstance(conv, OctaveConv2d)
        rescale_kernel(conv, how)
    return model


@dataclass(frozen=True)
class ConvertedNetwork:
    """A trained network on disk as an octave network of any architecture; picklable.

    Attributes:
        space: its architectures.
        weights: file of its state dict, see `octnas.nn.channel_order`.
    """

    space: SearchSpace
    weights: Path

    def load(self) -> nn.Module:
        """The network at α = 0, which keeps the kernels of the original beside its own."""
        model = build(self.space.vanilla, seed=0)
        load_weights(model, self.weights)
        for conv in _octave_convs(model):
            kernel = conv.weight.detach().clone()
            conv.register_buffer(_ORIGINAL, kernel, persistent=False)
        return model

    @staticmethod
    @torch.no_grad()
    def activate(model: nn.Module, alphas: Mapping[str, float]) -> None:
        """Convert the network from the original to an architecture, in place.

        The statistics of batch norms are those of before.

        Args:
            model: from `load`.
            alphas: by site; other sites go to 0.
        """
        activate(model, alphas)
        for conv in _octave_convs(model):
            conv.weight.copy_(getattr(conv, _ORIGINAL))
        rescale_kernels(model)


def _octave_convs(model: nn.Module) -> list[OctaveConv2d]:
    return [module for module in model.modules() if isinstance(module, OctaveConv2d)]


@torch.no_grad()
def rescale_kernel(conv: OctaveConv2d, how: Geometry) -> None:
    """Fit the four blocks of a kernel to the resolutions of their paths, in place.

    Each path then computes the mean of the original convolution over the pixels of each of its
    outputs, exactly so on maps that are constant on the cells that it sees: 2×2 pixels, and 4×4
    where a pooled stride leads to low. At an odd border the last cell counts as a whole one.

    Two cases cannot be exact, since a kernel's taps are where they are: dilated ones, and a strided
    1×1 kernel on a pooled image. A cell between two taps is then interpolated linearly (the best
    estimate if pixels are a random walk), one beyond the last tap is replaced by it.
    """
    for (source, target), block in zip(
        PATHS, kernel_blocks(conv.weight.detach(), how), strict=True
    ):
        if block is None or not block.numel():
            continue
        steps = how.steps(source, target)
        cell = 2 ** (source + max(steps, 0))
        if cell == 1 or block.shape[-2:] == (1, 1):
            continue
        unit = 2 if target or steps < 0 else 1
        axes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        rows, columns = (tap_matrix(*axis, cell, unit) for axis in axes)
        # Not on an accelerator, which may lack double precision or multiply in a shorter one.
        block.copy_(rows @ block.cpu().double() @ columns.T)


def tap_matrix(taps: int, stride: int, dilation: int, cell: int, unit: int) -> Tensor:
    """From the original's taps along one axis to those of one path: ``(taps, taps)``, float64.

    Args:
        taps, stride, dilation: of the original convolution.
        cell: pixels of its input per input pixel of the path.
        unit: pixels of its output per output pixel of the path.
    """
    matrix = torch.zeros(taps, taps, dtype=torch.float64)
    middle = (taps - 1) // 2
    for tap in range(taps):
        for place in range(unit):
            pixel = stride * place + dilation * (tap - middle)
            at = min(max(middle + pixel // cell / dilation, 0), taps - 1)
            below = int(at)
            matrix[below, tap] += (below + 1 - at) / unit
            if at > below:
                matrix[below + 1, tap] += (at - below) / unit
    return matrix
