"""The search space of a timm ResNet, from one pass of the model on the meta device."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octnas.errors import SettingWarning, UnsupportedModelError, require
from octnas.nn.backbone import create_backbone, refusing
from octnas.nn.conv import require_octave
from octnas.nn.octavize import ConvSite, match_sites, resolve_alphas, supported_convs
from octnas.space.architecture import MOST, StrideMode
from octnas.space.costs import ConvShape, low_channels
from octnas.space.search_space import SearchSpace, Site


def search_space(
    backbone: str,
    input_size: tuple[int, int, int],
    alphas: Sequence[float] = (),
    *,
    backbone_args: Mapping[str, Any] | None = None,
    fixed: Mapping[str, float] | None = None,
    channel_multiple: int = 1,
    stride_mode: StrideMode = "timm",
    choices: Sequence[float] = (),
) -> SearchSpace:
    """The search space of a timm ResNet.

    Args:
        backbone: name of the timm model.
        input_size: ``(channels, height, width)`` of one image.
        alphas: α to choose from, before they are quantized, at every searchable site.
        backbone_args: keyword arguments for ``timm.create_model``.
        fixed: α of sites that are not searched, by site name pattern; by default the paper's rule
            (§4.1), the stem and the last stage at 0.
        channel_multiple: low channels are rounded down to a multiple of this; α that
            coincide after that are merged.
        stride_mode: ``"timm"`` or ``"paper"``.
        choices: former name of ``alphas``.

    Raises:
        SettingError: an unknown backbone, arguments that it does not take, or α outside [0, 1].
        UnsupportedModelError: a backbone that octave feature maps cannot pass through.
        ArchitectureError: a pattern in ``fixed`` that matches no site.
    """
    if choices:
        warnings.warn("choices is now called alphas", SettingWarning, stacklevel=2)
        alphas = choices
    within = len(alphas) > 0 and all(0.0 <= alpha <= 1.0 for alpha in alphas)
    require(within, "alphas", alphas, "one or more, each 0 to 1")
    require_octave(channel_multiple, stride_mode)
    require(max(input_size) <= MOST, "input_size", input_size, f"1 to {MOST}")
    args = {"in_chans": input_size[0], **(backbone_args or {})}
    model = create_backbone(backbone, args, meta=True)
    convs = supported_convs(model)
    with refusing(backbone, args):
        sizes, other_macs = _trace(model, input_size, {conv.name for conv in convs})
    names = list(dict.fromkeys(conv.site_out for conv in convs))
    if fixed is None:
        fixed = {name: 0.0 for name, alpha in resolve_alphas(model, 1.0).items() if not alpha}
    else:
        fixed = match_sites(fixed, names)
    own = {name: (fixed[name],) if name in fixed else alphas for name in names}
    return SearchSpace(
        backbone=backbone,
        backbone_args=args,
        input_size=input_size,
        channel_multiple=channel_multiple,
        stride_mode=stride_mode,
        alphas=tuple(sorted({float(alpha) for alpha in alphas})),
        sites=tuple(_site(name, convs, model, own[name], channel_multiple) for name in names),
        convs=tuple(_conv_shape(conv, model, sizes[conv.name]) for conv in convs),
        other_macs=other_macs,
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def _site(
    name: str,
    convs: Sequence[ConvSite],
    model: nn.Module,
    alphas: Sequence[float],
    channel_multiple: int,
) -> Site:
    own = [index for index, conv in enumerate(convs) if conv.site_out == name]
    first = model.get_submodule(convs[own[0]].name)
    assert isinstance(first, nn.Conv2d)
    channels, groups = first.out_channels, convs[own[0]].split_groups
    low = {low_channels(alpha, channels, channel_multiple, groups) for alpha in alphas}
    return Site(
        name=name,
        channels=channels,
        groups=groups,
        choices=tuple(count / channels for count in sorted(low)),
        depth=sum(own) / len(own) / max(1, len(convs) - 1),
    )


def _conv_shape(conv: ConvSite, model: nn.Module, out_size: tuple[int, int]) -> ConvShape:
    module = model.get_submodule(conv.name)
    assert isinstance(module, nn.Conv2d)
    pooled = module.stride != (1, 1) and not conv.strided
    return ConvShape(
        name=conv.name,
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        groups=module.groups,
        kernel=module.kernel_size,  # type: ignore[arg-type]
        out_size=out_size,
        site_in=None if pooled else conv.site_in,
        site_out=conv.site_out,
    )


def _trace(
    model: nn.Module, input_size: tuple[int, int, int], names: Collection[str]
) -> tuple[dict[str, tuple[int, int]], int]:
    """Output sizes of the named convolutions, and the MACs of all other weighted layers."""
    sizes: dict[str, tuple[int, int]] = {}
    others: list[int] = []
    handles = []

    def note_size(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes[name] = (output.shape[-2], output.shape[-1])

    def note_macs(module: nn.Module, _inputs: object, output: Tensor) -> None:
        # Each output value is a sum over one row of the weight: classifier, SE and ECA.
        weight = module.weight
        assert isinstance(weight, Tensor)
        others.append(output.numel() * weight[0].numel())

    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_hook(partial(note_size, name)))
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            handles.append(module.register_forward_hook(note_macs))
    try:
        with torch.no_grad():
            model.eval()(torch.empty((1, *input_size), device="meta"))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the model does not take images of {input_size}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    return sizes, sum(others)
