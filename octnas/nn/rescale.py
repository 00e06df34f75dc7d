"""Kernels of a trained network, for convolutions that now work at half resolution.

They are rescaled (`rescale_kernels`), and then may be fitted on images (`fit_kernels`).

At half resolution a kernel sees twice the area that it was trained for. Its taps are moved to the
cells that hold the pixels they used to weight. Along one axis, a tap at offset o (in pixels) of a
convolution of stride s contributes to an output that averages u pixels of the original output::

    w_t / u  at cell  ⌊(s·r + o) / v⌋  for r in 0 … u−1

with cells of v pixels. For three taps that is (w0/2, w1 + (w0 + w2)/2, w2/2) at stride 1, and where
pooling replaces a stride of 2, (w0, w1 + w2, 0) into high and (w0/2, w1 + w2 + w0/2, 0) into low.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octnas.errors import UnsupportedModelError
from octnas.nn.conv import Geometry, OctaveConv2d, kernel_blocks, low_sides
from octnas.nn.octave import Features, OctaveTensor, low_mask, pool
from octnas.nn.octavize import geometries
from octnas.space.costs import PATHS

Model = TypeVar("Model", bound=nn.Module)


def rescale_kernels(model: Model) -> Model:
    """Fit the original's kernels to the network's present α, in place; returns the model.

    Call it once, on an octave network with the weights of the original: a second call would
    rescale again. Convolutions at α = 0 on both sides that keep their stride are not changed.
    The statistics of batch norms are not adapted, see `octnas.nn.supernet.recalibrate`.

    Args:
        model: an octave network, see `octnas.octavize`, of which α is not changed any more.

    Raises:
        UnsupportedModelError: not an octave network, or a supernet whose kernels are scaled or
            rescaled on use; nothing has been changed then.
    """
    convs = octave_convs(model)
    fixed = all(conv.path_scales is None and type(conv) is OctaveConv2d for conv in convs)
    if not convs or not fixed:
        found = "a supernet" if convs else f"a {type(model).__name__}"
        raise UnsupportedModelError(f"found {found}, allowed: an octave network of one α per site")
    for conv, how in geometries(model).items():
        assert isinstance(conv, OctaveConv2d)
        rescale_kernel(conv, how)
    return model


class RescaledConv2d(OctaveConv2d):
    """An octave convolution that keeps the original's kernel, and rescales it on every use.

    So it fits any α, for a supernet.
    """

    def fitted_weight(self, how: Geometry) -> Tensor:
        fitted, low_out, low_in = self.weight, *low_sides(self.weight, how)
        for source, target in PATHS:
            path = _path(self, how, source, target)
            if path and (how.low_in or not source) and (how.low_out or not target):
                taps = _flat_taps(*path, self.weight.dtype, self.weight.device)
                # Not in a shorter precision.
                with torch.autocast(taps.device.type, enabled=False):
                    rescaled = (self.weight.flatten(2) @ taps).view(self.weight.shape)
                here = (low_in == bool(source)) & (low_out == bool(target))
                fitted = torch.where(here[..., None, None], rescaled, fitted)
        return fitted


def rescale_on_use(model: Model) -> Model:
    """Let an octave network rescale the original's kernels at any α, in place; returns it.

    It computes what a copy with the same α computes after `rescale_kernels`.
    """
    for conv in octave_convs(model):
        conv.__class__ = RescaledConv2d
    return model


def octave_convs(model: nn.Module) -> list[OctaveConv2d]:
    """The octave convolutions of a network."""
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
        if path := _path(conv, how, source, target):
            axes, cell, unit = path
            rows, columns = (tap_matrix(*axis, cell, unit) for axis in axes)
            # Not on an accelerator, which may lack double precision or multiply in a shorter one.
            block.copy_(rows @ block.cpu().double() @ columns.T)


def fit_kernels(model: nn.Module, original: nn.Module, images: Tensor) -> None:
    """Fit kernels by least squares to what the original's convolutions compute, in place.

    Front to back, so that each convolution makes up for the ones before it (as pruned networks are
    reconstructed layer by layer, arXiv 1707.06168, §3): from what these give, it shall compute the
    original's output, averaged over 2×2 pixels where a channel is low. Solved by conjugate
    gradients that start from the present kernels and are stopped early, with a small ridge, so that
    few images are no danger. Biases and batch norms stay, and so does the kernel of a convolution
    that computes the original's output already.

    Args:
        model: an octave network after `rescale_kernels`.
        original: the network that it was converted from, with the same names.
        images: ``(N, C, H, W)``, where both networks are; all outputs of the original's
            convolutions are kept meanwhile.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        # A copy, since an activation may follow in place.
        return lambda _, __, output: outputs.update({name: output.clone()})

    def fit(name: str, how: Geometry) -> Callable[[nn.Module, tuple[Features, ...]], None]:
        def before(conv: nn.Module, inputs: tuple[Features, ...]) -> None:
            # Not where fitting itself calls the convolution.
            if name in outputs:
                _fit_kernel(conv, how, inputs[0], outputs.pop(name))

        return before

    convs, names = geometries(model), {module: name for name, module in model.named_modules()}
    modes = [(m, m.training) for network in (model, original) for m in network.modules()]
    handles = [
        handle
        for conv, how in convs.items()
        for handle in (
            original.get_submodule(names[conv]).register_forward_hook(keep(names[conv])),
            conv.register_forward_pre_hook(fit(names[conv], how)),
        )
    ]
    try:
        with torch.no_grad():
            original.eval()(images)
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


FIT_ITERATIONS = 20
"""Steps of conjugate gradients in `fit_kernels`, each a forward and a backward pass."""

# The ridge as a share of the curvature along the first step, the share of the squared outputs below
# which nothing is fitted, and that of the first gradient's square at which it is done.
_RIDGE, _EXACT, _DONE = 1e-3, 1e-8, 1e-10
# A low pixel stands for four.
_PIXELS = (1.0, 4.0)


def _fit_kernel(conv: nn.Module, how: Geometry, x: Features, output: Tensor) -> None:
    """Fit one kernel to the output of the original, on an input ``(N, C, H, W)``."""
    low = low_mask(output.shape[1], how.low_out, how.groups_out, like=output)
    halved = pool(output[:, low]) if how.low_out else output[:, low]
    wanted = output[:, ~low], halved

    def parts(kernel: Tensor) -> tuple[Tensor, ...]:
        found: Features = functional_call(conv, {"weight": kernel}, (x,))
        return (found.high, found.low) if isinstance(found, OctaveTensor) else (found,)

    # All is relative to the outputs, whose squares may be too large for a sum in float32.
    pixels = zip(_PIXELS, wanted, strict=True)
    scale = sum(w * float(one.double().square().sum()) for w, one in pixels)

    def missed(kernel: Tensor, target: Sequence[Tensor]) -> tuple[float, Tensor]:
        """The weighted squared error, and half its gradient, in float64."""
        with torch.enable_grad():
            kernel = kernel.to(weight.dtype, copy=True).requires_grad_()
            errors = [
                w * ((one - other) / scale**0.5).square().sum()
                for w, one, other in zip(_PIXELS, parts(kernel), target, strict=False)
                if one.numel()
            ]
            error = torch.stack(errors).sum()
            (gradient,) = torch.autograd.grad(error, kernel)
        return float(error), gradient.double() / 2

    weight: Tensor = conv.weight.detach()  # type: ignore[operator]
    biases = parts(torch.zeros_like(weight))
    if not scale:
        return
    error, gradient = missed(weight, wanted)
    if error <= _EXACT:
        return
    kernel, residual, step, ridge = weight.double(), -gradient, -gradient, 0.0
    length = first = float(residual.square().sum())
    for _ in range(FIT_ITERATIONS):
        if length <= _DONE * first:
            break
        curved = missed(step, biases)[1]
        if not ridge:
            ridge = _RIDGE * float((step * curved).sum()) / length
        curved = curved + ridge * step
        share = length / float((step * curved).sum())
        kernel = kernel + share * step
        residual = residual - share * curved
        before, length = length, float(residual.square().sum())
        step = residual + length / before * step
    weight.copy_(kernel)


Axes = tuple[tuple[int, int, int], ...]
"""Taps, stride and dilation of the original convolution along rows and columns."""


def _path(
    conv: OctaveConv2d, how: Geometry, source: int, target: int
) -> tuple[Axes, int, int] | None:
    """The axes of a path with its cell and unit, see `tap_matrix`; None where taps stay."""
    steps = how.steps(source, target)
    cell = 2 ** (source + max(steps, 0))
    if cell == 1 or conv.kernel_size == (1, 1):
        return None
    axes = tuple(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True))
    return axes, cell, 2 if target or steps < 0 else 1


# Inference mode would make a tensor that nothing can be trained with later.
@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _flat_taps(
    axes: Axes, cell: int, unit: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What flattened kernels ``(…, taps)`` are multiplied with from the right."""
    rows, columns = (tap_matrix(*axis, cell, unit) for axis in axes)
    return torch.kron(rows, columns).T.to(dtype=dtype, device=device).contiguous()


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
