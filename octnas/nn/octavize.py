"""Turn a timm ResNet into an octave network, in place, by swapping its leaf modules."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from timm.layers import SelectAdaptivePool2d
from timm.models.resnet import ResNet
from torch import nn

from octnas.architecture import Architecture, StrideMode
from octnas.errors import ArchitectureError, UnsupportedModelError
from octnas.nn.conv import OctaveConv2d, unfit
from octnas.nn.layers import OctaveAlign, OctaveGlobalPool2d, OctaveMaxPool2d, OctaveReLU
from octnas.nn.norm import OctaveBatchNorm2d
from octnas.nn.sites import ConvSite, conv_sites, identity_entries, stages

Alphas = float | Mapping[str, float] | Architecture
Model = TypeVar("Model", bound=nn.Module)

# A leaf module that is not named here, nor in _PASS, cannot take an octave feature map.
_SWAP: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: OctaveBatchNorm2d,
    nn.ReLU: OctaveReLU,
    nn.MaxPool2d: OctaveMaxPool2d,
    SelectAdaptivePool2d: OctaveGlobalPool2d,
}
# Never meet an octave feature map, or hand on whatever comes.
_PASS: tuple[type[nn.Module], ...] = (nn.Identity, nn.Linear)


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
        alphas: a number: the paper's rule (§4.1), that is the stem and the last stage at 0 and
            everything else at that number; a mapping of site name patterns (as in `fnmatch`) to
            numbers: exactly those, the rest at 0, a later pattern wins; or an `Architecture`.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"timm"``, or ``"paper"`` to pool before every stride-2 convolution.
            An `Architecture` brings its own ``channel_multiple`` and ``stride_mode``.

    Returns:
        The model that was given.

    Raises:
        UnsupportedModelError: the model holds something that octave feature maps cannot pass
            through; nothing has been changed then.
        ArchitectureError: a pattern that names no site, or α outside [0, 1].
    """
    convs = supported_convs(model)
    by_site = resolve_alphas(model, alphas)
    if isinstance(alphas, Architecture):
        channel_multiple, stride_mode = alphas.channel_multiple, alphas.stride_mode
    for conv in convs:
        OctaveConv2d.from_conv(
            model.get_submodule(conv.name),  # type: ignore[arg-type]
            channel_multiple=channel_multiple,
            stride_mode=stride_mode,
            strided=conv.stem,
            site=conv.site_out,
        )
    for module in model.modules():
        module.__class__ = _SWAP.get(type(module), type(module))
    assert isinstance(model, ResNet)
    for block, stream in identity_entries(model):
        align = OctaveAlign(block.get_submodule("conv1").in_channels, stream)  # type: ignore[arg-type]
        block.downsample = align.train(block.training)
    set_alphas(model, by_site)
    return model


def set_alphas(model: nn.Module, alphas: Mapping[str, float]) -> None:
    """Set α by site on a model that `octavize` has made; sites that are not named go to 0.

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
    """α by site for any of the forms that `octavize` takes."""
    names = list(dict.fromkeys(conv.site_out for conv in conv_sites(model)))
    if isinstance(alphas, Architecture):
        check_alphas(alphas.alphas, names)
        return {name: alphas.alphas.get(name, 0.0) for name in names}
    if isinstance(alphas, Mapping):
        return match_sites(alphas, names, default=0.0)
    assert isinstance(model, ResNet)
    last_stage = [name for name, _ in stages(model)][-1]
    return match_sites({"*": float(alphas), "stem*": 0.0, f"{last_stage}*": 0.0}, names)


def check_alphas(alphas: Mapping[str, float], names: Collection[str]) -> None:
    """Refuse α by site that a model with these sites cannot have.

    Raises:
        ArchitectureError: an unknown site, or α outside [0, 1].
    """
    if unknown := sorted(set(alphas) - set(names)):
        raise ArchitectureError(f"unknown sites {', '.join(unknown)}; allowed: {', '.join(names)}")
    for site, alpha in alphas.items():
        if not 0.0 <= alpha <= 1.0:
            raise ArchitectureError(f"α of site {site!r}: found {alpha}, allowed: 0 to 1")


def match_sites(
    patterns: Mapping[str, float], names: Iterable[str], default: float = 0.0
) -> dict[str, float]:
    """A number for every site from patterns of site names; a later pattern wins.

    Raises:
        ArchitectureError: a pattern that names no site, or a number outside [0, 1].
    """
    names = list(names)
    values = dict.fromkeys(names, default)
    for pattern, value in patterns.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ArchitectureError(f"pattern {pattern!r} names no site; sites: {', '.join(names)}")
        if not 0.0 <= value <= 1.0:
            raise ArchitectureError(f"α for {pattern!r}: found {value}, allowed: 0 to 1")
        values.update(dict.fromkeys(matched, float(value)))
    return values


def supported_convs(model: nn.Module) -> tuple[ConvSite, ...]:
    """The convolutions to swap, after a look at every module of the model.

    Raises:
        UnsupportedModelError: a module that octave feature maps cannot pass through.
    """
    convs = conv_sites(model)
    known = {conv.name for conv in convs}
    for name, module in model.named_modules():
        if next(module.children(), None) is not None and type(module) not in _SWAP:
            continue
        check = _check_conv if isinstance(module, nn.Conv2d) else _check_leaf
        problem = check(module, name in known)
        inside_pool = name.startswith("global_pool.")
        if problem and not inside_pool:
            raise UnsupportedModelError(f"{name}: {problem}")
    return convs


def _check_conv(conv: nn.Module, known: bool) -> str | None:
    assert isinstance(conv, nn.Conv2d)
    if type(conv) is OctaveConv2d:
        return "is an octave convolution already; use octnas.nn.activate to set another α"
    if type(conv) is not nn.Conv2d or not known:
        return f"found a {type(conv).__name__} that no site covers"
    return unfit(conv)


def _check_leaf(module: nn.Module, _: bool) -> str | None:
    kind = type(module)
    if isinstance(module, SelectAdaptivePool2d) and module.pool_type not in ("avg", "max"):
        return f"found global pooling {module.pool_type!r}, allowed: 'avg', 'max'"
    if kind in _SWAP or kind in _PASS:
        return None
    classes: tuple[type[nn.Module], ...] = (nn.Conv2d, *_SWAP, *_PASS)
    allowed = ", ".join(sorted(other.__name__ for other in classes))
    return f"found a {kind.__name__}, allowed: {allowed}"
