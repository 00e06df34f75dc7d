"""Turn a timm ResNet into an octave network, in place, by swapping its leaf modules.

Convolutions that share one α form a site. Every convolution inside a block has a site of its own,
named after it (``layer1.0.conv1``). The operands of a residual addition must share one: the last
convolution of every block of a stage and the projection shortcut form the stage's residual stream
(``layer1``). A depthwise convolution belongs to the site of its input. The stem is ``stem``; a deep
stem has ``stem.0``, ``stem.1`` and so on, and a convolution that replaces the stem's pooling is
``stem.pool``.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from timm.layers import DropBlock2d, SelectAdaptivePool2d, use_reentrant_ckpt
from timm.layers import Linear as TimmLinear
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from octnas.errors import ArchitectureError, UnsupportedModelError
from octnas.nn.conv import Geometry, OctaveConv2d, is_depthwise, unfit
from octnas.nn.layers import (
    OCTAVE_LAYERS,
    OctaveAlign,
    OctaveEca,
    OctaveEffectiveSE,
    OctaveGlobalPool2d,
    OctaveSE,
)
from octnas.space.architecture import Architecture, StrideMode, check_alpha, check_alphas

Alphas = float | Mapping[str, float] | Architecture
Model = TypeVar("Model", bound=nn.Module)

# Never meet an octave feature map, or pass on whatever comes.
_PASS: tuple[type[nn.Module], ...] = (nn.Identity, nn.Linear, TimmLinear, nn.Flatten)
# Modules inside of these see plain tensors only.
_INSIDE = tuple(
    octave.__bases__[-1] for octave in (OctaveSE, OctaveEffectiveSE, OctaveEca, OctaveGlobalPool2d)
)
_CONTAINERS = (ResNet, BasicBlock, Bottleneck, nn.Sequential)


@dataclass(frozen=True)
class ConvSite:
    """A convolution and the sites at its two ends.

    Attributes:
        name: of the module in the model.
        site_in: site of the input; None if it is an image.
        site_out: site of the output.
        split_groups: `OctaveTensor.groups` of the output.
        strided: whether a stride is never replaced by pooling, as where the input is an image.
    """

    name: str
    site_in: str | None
    site_out: str
    split_groups: int = 1
    strided: bool = False


def octavize(
    model: Model,
    alphas: Alphas,
    *,
    channel_multiple: int = 1,
    stride_mode: StrideMode = "timm",
) -> Model:
    """Make a timm ResNet an octave network, in place, with the same parameters and keys.

    Args:
        model: a ``timm.models.resnet.ResNet``.
        alphas: a number for the paper's rule (§4.1), that is the stem and the last stage at 0 and
            everything else at that number; a mapping of site name patterns (as in `fnmatch`) to
            numbers, where a later pattern wins and other sites are at 0; or an `Architecture`.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"timm"``, or ``"paper"`` to pool before every stride-2 convolution.
            An `Architecture` brings its own ``channel_multiple`` and ``stride_mode``.

    Returns:
        The given model.

    Raises:
        UnsupportedModelError: the model has a module that octave feature maps cannot pass
            through; nothing has been changed then.
        ArchitectureError: a pattern that matches no site, or α outside [0, 1].
        SettingError: an impossible ``channel_multiple`` or ``stride_mode``.
    """
    convs = supported_convs(model)
    by_site = resolve_alphas(model, alphas)
    if isinstance(alphas, Architecture):
        channel_multiple, stride_mode = alphas.channel_multiple, alphas.stride_mode
    for conv in convs:
        OctaveConv2d.from_conv(
            model.get_submodule(conv.name),  # type: ignore[arg-type]
            channel_multiple,
            stride_mode,
            conv.strided,
            conv.split_groups,
            conv.site_out,
        )
    for _, module in list(modules_on_features(model)):
        module.__class__ = OCTAVE_LAYERS.get(type(module), type(module))
    assert isinstance(model, ResNet)
    for block, stream in identity_entries(model):
        align = OctaveAlign(block.get_submodule("conv1").in_channels, stream)  # type: ignore[arg-type]
        block.downsample = align.train(block.training)
    model.register_forward_pre_hook(refuse_reentrant)
    set_alphas(model, by_site)
    return model


def set_alphas(model: nn.Module, alphas: Mapping[str, float]) -> None:
    """Set α by site on an octave network; sites that are not named go to 0.

    Raises:
        ArchitectureError: an unknown site, or α outside [0, 1]; nothing has been changed then.
    """
    convs = [module for module in model.modules() if isinstance(module, OctaveConv2d)]
    check_alphas(alphas, dict.fromkeys(conv.site for conv in convs))
    low_by_site: dict[str, int] = {}
    for conv in convs:
        conv.set_alpha(alphas.get(conv.site, 0.0))
        low_by_site[conv.site] = conv.low_channels
    for module in model.modules():
        if isinstance(module, OctaveAlign):
            module.low_channels = low_by_site[module.site]


def resolve_alphas(model: nn.Module, alphas: Alphas) -> dict[str, float]:
    """α by site, checked, for any of the forms that `octavize` takes."""
    names = list(dict.fromkeys(conv.site_out for conv in conv_sites(model)))
    if isinstance(alphas, Architecture):
        check_alphas(alphas.alphas, names)
        return dict(alphas.alphas)
    if isinstance(alphas, Mapping):
        return match_sites(alphas, names)
    assert isinstance(model, ResNet)
    last_stage = [name for name, _ in stages(model)][-1]
    return match_sites({"*": float(alphas), "stem*": 0.0, f"{last_stage}*": 0.0}, names)


def match_sites(patterns: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """α by site, for those that a pattern matches; a later pattern wins.

    Raises:
        ArchitectureError: a pattern that matches no site, or α outside [0, 1].
    """
    names, alphas = list(names), dict[str, float]()
    for pattern, alpha in patterns.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ArchitectureError(
                f"pattern {pattern!r} matches no site; sites: {', '.join(names)}"
            )
        check_alpha(pattern, alpha)
        alphas.update(dict.fromkeys(matched, float(alpha)))
    return alphas


def supported_convs(model: nn.Module) -> tuple[ConvSite, ...]:
    """The convolutions to swap, after a check of every module of the model.

    Raises:
        UnsupportedModelError: a module that octave feature maps cannot pass through.
    """
    convs = conv_sites(model)
    by_name = {conv.name: conv for conv in convs}
    groups: dict[str | None, int] = {conv.site_out: conv.split_groups for conv in convs}
    for name, module in modules_on_features(model):
        if isinstance(module, nn.Conv2d):
            conv = by_name.get(name)
            problem = _check_conv(module, conv, groups.get(conv.site_in if conv else None, 1))
        else:
            problem = _check_module(module)
        if problem:
            raise UnsupportedModelError(f"{name or 'the model'}: {problem}")
    return convs


def modules_on_features(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules that feature maps pass through, by name."""
    yield name, model
    if not isinstance(model, _INSIDE):
        for child_name, child in model.named_children():
            yield from modules_on_features(child, f"{name}.{child_name}".lstrip("."))


def _check_conv(module: nn.Conv2d, conv: ConvSite | None, groups_in: int) -> str | None:
    if type(module) is OctaveConv2d:
        return "is an octave convolution already; use octnas.nn.activate to set another α"
    if type(module) is not nn.Conv2d or conv is None:
        return f"found a {type(module).__name__} that belongs to no site"
    if is_depthwise(module):
        fits = conv.site_in == conv.site_out
    else:
        fits = module.groups == 1 or groups_in == module.groups == conv.split_groups
    if not fits:
        return (
            f"found a convolution of {module.groups} groups, allowed: 1, or any as the second of "
            "a bottleneck's three"
        )
    return unfit(module)


def _check_module(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, SelectAdaptivePool2d) and not module.pool_type:
        return "found no global pooling, allowed: any, such as 'avg'"
    if isinstance(module, DropBlock2d) and module.with_noise:
        return "found DropBlock2d with noise, allowed: without"
    if kind in OCTAVE_LAYERS or kind in _PASS or isinstance(module, _CONTAINERS):
        return None
    classes: tuple[type[nn.Module], ...] = (nn.Conv2d, *OCTAVE_LAYERS, *_PASS)
    allowed = ", ".join(sorted({other.__name__ for other in classes}))
    return f"found a {kind.__name__}, allowed: {allowed}"


def conv_sites(model: nn.Module) -> tuple[ConvSite, ...]:
    """The convolutions of a timm ResNet, octave or not, in the order of execution.

    Raises:
        UnsupportedModelError: the model is not a ``timm.models.resnet.ResNet`` of basic or
            bottleneck blocks, or has been deployed.
    """
    if not isinstance(model, ResNet):
        raise UnsupportedModelError(
            f"found a {type(model).__module__}.{type(model).__name__}, allowed: timm's ResNets "
            "(timm.models.resnet.ResNet)"
        )
    sites = list(_stem(model))
    for stage_name, stage in stages(model):
        stream = sites[-1].site_out
        for index, block in enumerate(stage):
            sites += _block(f"{stage_name}.{index}", block, stream, stage_name)
            stream = stage_name
    return tuple(sites)


def geometries(model: nn.Module) -> dict[nn.Module, Geometry]:
    """What every octave convolution of a network does at its present α."""
    sites = [(site, model.get_submodule(site.name)) for site in conv_sites(model)]
    split: dict[str | None, tuple[int, int]] = {}
    found: dict[nn.Module, Geometry] = {}
    for site, conv in sites:
        assert isinstance(conv, OctaveConv2d)
        split[site.site_out] = conv.low_channels, conv.split_groups
    for site, conv in sites:
        assert isinstance(conv, OctaveConv2d)
        found[conv] = conv.geometry(*split.get(site.site_in, (0, 1)))
    return found


def stages(model: ResNet) -> Iterator[tuple[str, nn.Sequential]]:
    """The stages of a ResNet by name: ``layer1`` and so on."""
    for name, module in model.named_children():
        # A network of fewer than four stages has empty ones.
        if name.startswith("layer") and isinstance(module, nn.Sequential) and len(module):
            yield name, module


def identity_entries(model: ResNet) -> Iterator[tuple[nn.Module, str]]:
    """The blocks that begin a stage with an identity shortcut, with the stage's stream.

    There the stream of one site is added to that of another.
    """
    for name, stage in stages(model):
        if stage[0].downsample is None:
            yield stage[0], name


def _stem(model: ResNet) -> Iterator[ConvSite]:
    names = [("conv1", "stem")]
    if not isinstance(model.conv1, nn.Conv2d):
        children = model.conv1.named_children()
        convs = [name for name, module in children if isinstance(module, nn.Conv2d)]
        names = [(f"conv1.{name}", f"stem.{index}") for index, name in enumerate(convs)]
    if not names:
        raise UnsupportedModelError(
            "conv1: found no torch.nn.Conv2d, allowed: one or a chain of them; a deployed network "
            "keeps its α"
        )
    # timm's `replace_stem_pool`.
    names += [
        (f"maxpool.{name}", "stem.pool")
        for name, module in model.maxpool.named_children()
        if isinstance(module, nn.Conv2d)
    ]
    previous = None
    for name, site in names:
        yield ConvSite(name, previous, site, strided=previous is None)
        previous = site


def _block(name: str, block: nn.Module, stream_in: str, stream_out: str) -> Iterator[ConvSite]:
    if not isinstance(block, BasicBlock | Bottleneck):
        raise UnsupportedModelError(
            f"{name}: found a {type(block).__name__}, allowed: BasicBlock, Bottleneck"
        )
    inner = ("conv1", "conv2") if isinstance(block, Bottleneck) else ("conv1",)
    # Around a grouped convolution (ResNeXt) the channels are split inside each group.
    middle = block.get_submodule("conv2")
    assert isinstance(middle, nn.Conv2d)
    groups = 1 if is_depthwise(middle) else middle.groups
    current = stream_in
    for conv in inner:
        ties = conv == "conv2" and is_depthwise(middle)
        site_out = current if ties else f"{name}.{conv}"
        yield ConvSite(f"{name}.{conv}", current, site_out, split_groups=groups)
        current = site_out
    yield ConvSite(f"{name}.conv{len(inner) + 1}", current, stream_out)
    shortcut = block.downsample
    for child, module in [] if shortcut is None else shortcut.named_children():
        if isinstance(module, nn.Conv2d):
            yield ConvSite(f"{name}.downsample.{child}", stream_in, stream_out)


def refuse_reentrant(model: nn.Module, _inputs: object = None) -> None:
    """Refuse reentrant gradient checkpoints around octave feature maps; a forward pre-hook.

    They only see tensors: a block whose input is an octave tensor, and everything before it, would
    silently learn nothing. timm's default, non-reentrant checkpoints, is fine.

    Raises:
        UnsupportedModelError: the model is about to use them.
    """
    asked = getattr(model, "grad_checkpointing", False) and use_reentrant_ckpt()
    if not asked or not torch.is_grad_enabled():
        return
    if any(isinstance(one, OctaveConv2d) and one.low_channels for one in model.modules()):
        raise UnsupportedModelError(
            "reentrant gradient checkpoints lose the gradients of octave feature maps; call "
            "timm.layers.set_reentrant_ckpt(False)"
        )
