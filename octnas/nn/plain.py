"""Plain baselines with the MACs of an octave network: narrower, shallower, or smaller images.

They are what one would use without octave convolutions, so an octave network should beat them.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from timm.models.resnet import ResNet

from octnas.errors import SettingError, UnsupportedModelError
from octnas.nn.backbone import create_backbone
from octnas.nn.cost import cost
from octnas.nn.octavize import stages
from octnas.results.networks import NARROWER, SHALLOWER, SMALLER_IMAGES
from octnas.space.architecture import Architecture

_WIDTHS = 64  # steps from width 0 to the full width
_PAIR = 2  # widths are even, since timm halves that of a stem
_ABOVE = 1.03  # times the requested MACs is close enough
_SMALLEST = 8  # pixels of an image's side


def plain_network(role: str, architecture: Architecture, at_least: int) -> Architecture | None:
    """The smallest plain network, scaled down in one way, with at least ``at_least`` MACs.

    Args:
        role: ``"narrower"`` (fewer channels in every stage), ``"shallower"`` (fewer blocks) or
            ``"smaller images"``.
        architecture: any of the backbone; its α do not matter.
        at_least: MACs below which it would not be a fair baseline.

    Returns:
        None if the backbone cannot be scaled in that way, or not below its full MACs.
    """
    whole = _plain(architecture)
    if cost(whole).macs <= at_least:
        return None
    return _KINDS[role](whole, at_least)


def _narrower(whole: Architecture, at_least: int) -> Architecture | None:
    """Every stage, and a stem with a width of its own, by about the same share."""
    model = _model(whole)
    full = tuple(_planes(stage[0]) for _, stage in stages(model))
    if "stem_width" in whole.backbone_args:
        full += (int(whole.backbone_args["stem_width"]),)

    def of(widths: tuple[int, ...]) -> Architecture:
        *channels, stem = widths if "stem_width" in whole.backbone_args else (*widths, 0)
        return _plain(whole, args={"channels": channels, **({"stem_width": stem} if stem else {})})

    def scaled(step: int) -> tuple[int, ...]:
        return tuple(max(_PAIR, _PAIR * round(c * step / _WIDTHS / _PAIR)) for c in full)

    if _macs_or_none(of(full)) is None:
        return None
    step = _first(lambda step: of(scaled(step)), 1, _WIDTHS, at_least)
    widths = _near(scaled(step), full, lambda widths: _macs_or_none(of(widths)), at_least)
    return None if widths == full else of(widths)


def _near(
    widths: tuple[int, ...],
    full: tuple[int, ...],
    macs_of: Callable[[tuple[int, ...]], int | None],
    at_least: int,
) -> tuple[int, ...]:
    """Widths next to the given ones with MACs closer to the requested ones, still about even.

    In a network of few channels, one step of all widths may be a tenth of the MACs.
    """
    most = round(_ABOVE * at_least)
    if (macs_of(widths) or 0) <= most:
        return widths
    steps = [(width - _PAIR, width, width + _PAIR) for width in widths]
    found = []
    for other in product(*steps):
        fits = all(_PAIR <= width <= whole for width, whole in zip(other, full, strict=True))
        macs = macs_of(other) if fits else None
        if macs is not None and macs >= at_least:
            shares = [width / whole for width, whole in zip(other, full, strict=True)]
            # The most even ones among those that are close enough, else the closest.
            found.append((max(macs, most), max(shares) / min(shares), macs, other))
    return min(found)[-1]


def _smaller_images(whole: Architecture, at_least: int) -> Architecture | None:
    channels, height, width = whole.input_size

    def smaller(side: int) -> Architecture:
        return _plain(whole, size=(channels, side, max(1, round(side * width / height))))

    if _macs_or_none(smaller(height)) is None:
        return None
    side = _first(smaller, min(_SMALLEST, height), height, at_least)
    return None if side == height else smaller(side)


def _shallower(whole: Architecture, at_least: int) -> Architecture | None:
    model = _model(whole)
    blocks = [len(stage) for _, stage in stages(model)]
    found = []
    for layers in product(*(range(1, count + 1) for count in blocks)):
        if _even(layers, blocks) and list(layers) != blocks:
            found.append(_plain(whole, args={"layers": list(layers)}))
    costs = {one.id: macs for one in found if (macs := _macs_or_none(one)) is not None}
    allowed = [one for one in found if costs.get(one.id, 0) >= at_least]
    return min(allowed, key=lambda one: (costs[one.id], one.id), default=None)


def _even(layers: tuple[int, ...], blocks: list[int]) -> bool:
    """Whether all stages lose about the same share of their blocks: within one block."""
    share = sum(layers) / sum(blocks)
    return all(abs(some - share * all_) < 1 for some, all_ in zip(layers, blocks, strict=True))


def _first(make: Callable[[int], Architecture], low: int, high: int, at_least: int) -> int:
    """The first of the networks, ascending in MACs, that has enough; the last one does."""
    return low + bisect_left(
        range(low, high), at_least, key=lambda index: _macs_or_none(make(index)) or 0
    )


def _planes(block: Any) -> int:
    """The stage's ``channels`` in timm: its outputs before a bottleneck's expansion."""
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    return int(last.weight.shape[0]) // int(block.expansion)


def _plain(
    whole: Architecture,
    *,
    args: Mapping[str, Any] | None = None,
    size: tuple[int, int, int] | None = None,
) -> Architecture:
    """At α = 0 and with strides, timm's own network."""
    return Architecture(
        backbone=whole.backbone,
        input_size=size or whole.input_size,
        alphas={},
        backbone_args={**whole.backbone_args, **(args or {})},
        stride_mode="timm",
    )


def _model(architecture: Architecture) -> ResNet:
    model = create_backbone(architecture.backbone, architecture.backbone_args, meta=True)
    assert isinstance(model, ResNet)
    return model


def _macs_or_none(architecture: Architecture) -> int | None:
    """None if timm does not build the network, or it takes no images of that size."""
    try:
        return cost(architecture).macs
    except (SettingError, UnsupportedModelError):
        return None


_KINDS = {NARROWER: _narrower, SHALLOWER: _shallower, SMALLER_IMAGES: _smaller_images}
