"""A supernet whose loss is differentiable with respect to which channels are low.

Every layer computes all its channels twice, once as high and once as low, and the layer after it
takes of each channel the version that a mask picks::

    y_high = f(x_high·(1−m); W) + upsample(f(x_low·m; W))
    y_low  = f(pool(x_high·(1−m)) + x_low·m; W)

with f, pool and upsample as in the octave convolution (arXiv 1904.05049, §3.3) and m the mask of
the input's site, 1 for low channels. With masks of zeros and ones it is the octave network of that
architecture up to rounding, also on odd maps and around grouped convolutions. In between the loss
is smooth in the masks, and its gradient says to first order what it gains if a channel switches.

A step costs about 1.5 times the vanilla network's, and twice that in activations.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from octnas.nn.conv import OctaveConv2d, sound_layout
from octnas.nn.layers import (
    EachPart,
    OctaveAlign,
    OctaveAttention,
    OctaveAvgPool2d,
    OctaveBlurPool2d,
    OctaveDropBlock2d,
    OctaveDropPath,
    OctaveGlobalPool2d,
    OctaveMaxPool2d,
)
from octnas.nn.octave import OctaveTensor, low_mask, pool, upsample
from octnas.space.search_space import SearchSpace

Masks = Mapping[str, Tensor]
"""Which channels are low, by site: ``(C,)`` from 0 to 1; other sites have no low channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Versions:
    """A feature map with a high and a low version of every channel.

    Attributes:
        high: ``(N, C, H, W)``.
        low: ``(N, C, ⌈H/2⌉, ⌈W/2⌉)``.
        mask: ``(C, 1, 1)``, 1 where the low version is taken.
    """

    high: Tensor
    low: Tensor
    mask: Tensor

    def __add__(self, other: "Versions") -> "Versions":
        return Versions(self.high + other.high, self.low + other.low, self.mask)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Both versions, each 0 in the channels of which the other is taken."""
        return self.high * (1 - self.mask), self.low * self.mask


Flow = Tensor | Versions
"""A plain tensor where no choice has a low channel."""


class Relaxed:
    """A frozen view of a supernet that takes masks.

    It shares the weights of the supernet, switchable or not, also after they change, as long as
    they stay on their device. Batch norms use the batch's statistics and track none; dropout is
    off.
    """

    def __init__(self, supernet: nn.Module) -> None:
        frozen = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in supernet.parameters()
        }
        self._network = copy.deepcopy(supernet, memo=frozen).eval()
        self._masks: dict[str, Tensor] = {}
        for module in self._network.modules():
            if (rule := _rule(module)) is not None:
                # An instance's forward takes precedence over its class's.
                module.forward = partial(rule, module, self._masks)

    def __call__(self, images: Tensor, masks: Masks) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, classes)``, differentiable in the masks."""
        self._masks.clear()
        self._masks.update({site: mask.view(-1, 1, 1) for site, mask in masks.items()})
        logits: Tensor = self._network(images)
        return logits


def choice_masks(supernet: nn.Module, space: SearchSpace) -> dict[str, Tensor]:
    """Which channels each choice makes low, for every site that has any.

    Returns:
        By site, ``(choices, C)`` of zeros and ones in the weights' dtype, on their device.
    """
    found: dict[str, Tensor] = {}
    for conv in supernet.modules():
        if not isinstance(conv, OctaveConv2d) or conv.site in found:
            continue
        channels, groups = conv.out_channels, conv.split_groups
        low = [round(alpha * channels) for alpha in space.site[conv.site].choices]
        if any(low):
            masks = [low_mask(channels, count, groups, like=conv.weight) for count in low]
            found[conv.site] = torch.stack(masks).to(conv.weight.dtype)
    return found


def _conv(conv: OctaveConv2d, masks: Masks, x: Flow) -> Flow:
    if conv.depthwise and isinstance(x, Versions):
        return _depthwise(conv, x)
    mask = masks.get(conv.site)
    hh, hl, lh, ll = _scales(conv)
    high, low = x.chosen() if isinstance(x, Versions) else (x, None)
    pooled = pool(high) if mask is not None or _pools(conv) else high
    if not _pools(conv):
        y_high = _convolve(conv, high, hh)
        if low is not None:
            y_high = y_high + upsample(_convolve(conv, low, lh, bias=False), like=y_high)
    elif _strides(conv, x, mask):
        y_high = _convolve(conv, high, hh, strides=True)
    else:
        y_high = _convolve(conv, hh * pooled if low is None else hh * pooled + lh * low)
    if mask is None:
        return y_high
    below = hl * pooled if low is None else hl * pooled + ll * low
    y_low = _convolve(conv, pool(below) if _pools(conv) else below)
    return Versions(y_high, y_low, mask)


def _depthwise(conv: OctaveConv2d, x: Versions) -> Versions:
    """No path crosses the resolutions, and the input's site is the output's."""
    hh, _, _, ll = _scales(conv)
    high, low = x.high, x.low
    strides = _strides(conv, x, x.mask)
    if _pools(conv):
        high, low = high if strides else pool(high), pool(low)
    return Versions(_convolve(conv, high, hh, strides), _convolve(conv, low, ll), x.mask)


def _pools(conv: OctaveConv2d) -> bool:
    """Whether average pooling replaces the stride."""
    return conv.stride != (1, 1) and not conv.strided


def _strides(conv: OctaveConv2d, x: Flow, mask: Tensor | None) -> bool:
    """Whether the stride is kept after all: in timm's mode, with nothing low on either side."""
    masks = [mask, x.mask if isinstance(x, Versions) else None]
    plain = all(mask is None or not mask.detach().any() for mask in masks)
    return _pools(conv) and conv.stride_mode == "timm" and plain


def _scales(conv: OctaveConv2d) -> tuple[Any, Any, Any, Any]:
    if conv.path_scales is None:
        return 1.0, 1.0, 1.0, 1.0
    hh, hl, lh, ll = conv.path_scales
    return hh, hl, lh, ll


def _convolve(
    conv: OctaveConv2d, x: Tensor, scale: Any = 1.0, strides: bool = False, bias: bool = True
) -> Tensor:
    stride = conv.stride if strides or not _pools(conv) else (1, 1)
    return F.conv2d(
        *sound_layout(x, conv.weight * scale, stride),
        conv.bias if bias else None,
        stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )


def _norm(norm: nn.BatchNorm2d, _: Masks, x: Flow) -> Flow:
    """Each version with the statistics of its own batch."""
    if isinstance(x, Tensor):
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    weight, bias = getattr(norm, "low_weight", norm.weight), getattr(norm, "low_bias", norm.bias)
    return Versions(
        F.batch_norm(x.high, None, None, norm.weight, norm.bias, training=True, eps=norm.eps),
        F.batch_norm(x.low, None, None, weight, bias, training=True, eps=norm.eps),
        x.mask,
    )


def _norm_act(norm: nn.BatchNorm2d, masks: Masks, x: Flow) -> Flow:
    activated: Flow = norm.act(norm.drop(_norm(norm, masks, x)))  # type: ignore[operator]
    return activated


def _each(module: nn.Module, _: Masks, x: Flow) -> Flow:
    """What treats both parts of an octave tensor alike, or each at its own resolution."""
    plain: Callable[..., Any] = partial(type(module).forward, module)
    if isinstance(x, Tensor):
        tensor: Tensor = plain(x)
        return tensor
    parts: OctaveTensor = plain(OctaveTensor(x.high, x.low))
    return Versions(parts.high, parts.low, x.mask)


def _attend(module: OctaveAttention, _: Masks, x: Flow) -> Flow:
    if isinstance(x, Tensor):
        return x * module.gates(module.squeeze(x))
    high, low = module.squeeze(x.high), module.squeeze(x.low)
    gates = module.gates(high * (1 - x.mask) + low * x.mask)
    return Versions(x.high * gates, x.low * gates, x.mask)


def _align(align: OctaveAlign, masks: Masks, x: Flow) -> Flow:
    mask = masks.get(align.site)
    high, low = x.chosen() if isinstance(x, Versions) else (x, None)
    as_high = high if low is None else high + upsample(low, like=high)
    if mask is None:
        return as_high
    return Versions(as_high, pool(high) if low is None else pool(high) + low, mask)


def _global_pool(module: OctaveGlobalPool2d, _: Masks, x: Flow) -> Tensor:
    plain: Callable[..., Tensor] = partial(type(module).forward, module)
    if isinstance(x, Tensor):
        return plain(x)
    high, low = plain(x.high), plain(x.low)
    # "catavgmax" gives all averages, then all maxima.
    mask = x.mask.flatten().repeat(module.feat_mult())
    mask = mask.view(-1, *[1] * (high.ndim - 2))
    return high * (1 - mask) + low * mask


Rule = Callable[[Any, Masks, Any], Any]


def _rule(module: nn.Module) -> Rule | None:
    """How a module treats feature maps; None if it meets none, or passes on whatever comes."""
    return next((rule for kind, rule in _RULES.items() if isinstance(module, kind)), None)


_BY_PART = (
    *(EachPart, OctaveDropPath, OctaveDropBlock2d),
    *(OctaveMaxPool2d, OctaveAvgPool2d, OctaveBlurPool2d),
)
_RULES: Mapping[type, Rule] = {
    **dict.fromkeys(_BY_PART, _each),
    OctaveConv2d: _conv,
    BatchNormAct2d: _norm_act,
    nn.BatchNorm2d: _norm,
    OctaveAttention: _attend,
    OctaveAlign: _align,
    OctaveGlobalPool2d: _global_pool,
}
