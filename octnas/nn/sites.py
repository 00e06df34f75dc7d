"""Which convolutions of a timm ResNet share one α: the sites.

Every convolution inside a block has its own site, named after it (``layer1.0.conv1``). What is
added must share one: the last convolution of every block of a stage and the projection shortcut
form the stage's residual stream (``layer1``). A depthwise convolution shares that of its input. The
stem is ``stem``; of a deep stem, ``stem.0``, ``stem.1`` and so on, and ``stem.pool`` where a
convolution stands in the place of the stem's pooling.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from octnas.errors import UnsupportedModelError
from octnas.nn.conv import OctaveConv2d, is_depthwise
from octnas.nn.paths import Geometry


@dataclass(frozen=True)
class ConvSite:
    """A convolution and the sites at its two ends.

    Attributes:
        name: of the module in the model.
        site_in: site of the input; None where it is an image.
        site_out: site of the output.
        split_groups: in how many groups the output's channels are split.
        strided: whether a stride stays a stride, as it does where the input is an image.
    """

    name: str
    site_in: str | None
    site_out: str
    split_groups: int = 1
    strided: bool = False


def conv_sites(model: nn.Module) -> tuple[ConvSite, ...]:
    """The convolutions of a timm ResNet in the order in which data reaches them.

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
    """What every octave convolution of a model does, by module."""
    sites = conv_sites(model)
    low: dict[str | None, tuple[int, int]] = {}
    for site in sites:
        conv = model.get_submodule(site.name)
        assert isinstance(conv, OctaveConv2d)
        low[site.site_out] = conv.low_channels, conv.split_groups
    found: dict[nn.Module, Geometry] = {}
    for site in sites:
        conv = model.get_submodule(site.name)
        assert isinstance(conv, OctaveConv2d)
        found[conv] = conv.geometry(*low.get(site.site_in, (0, 1)))
    return found


def stages(model: ResNet) -> Iterator[tuple[str, nn.Sequential]]:
    """The stages of a ResNet by name: ``layer1`` and so on."""
    for name, module in model.named_children():
        # A network with fewer than four stages has nothing in the place of the others.
        if name.startswith("layer") and isinstance(module, nn.Sequential) and len(module):
            yield name, module


def identity_entries(model: ResNet) -> Iterator[tuple[nn.Module, str]]:
    """The first blocks that begin with an identity shortcut, with the stage's stream.

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
            "conv1: found no convolution of torch's, allowed: one or a chain of them; a deployed "
            "network keeps its α"
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
    inner: tuple[str, ...]
    if isinstance(block, Bottleneck):
        inner = ("conv1", "conv2", "conv3")
    elif isinstance(block, BasicBlock):
        inner = ("conv1", "conv2")
    else:
        raise UnsupportedModelError(
            f"{name}: found a {type(block).__name__}, allowed: BasicBlock, Bottleneck"
        )
    # Around a grouped convolution (ResNeXt) the channels are split inside each group.
    middle = block.get_submodule("conv2")
    assert isinstance(middle, nn.Conv2d)
    groups = 1 if is_depthwise(middle) else middle.groups
    current = stream_in
    for conv in inner:
        if conv == inner[-1]:
            yield ConvSite(f"{name}.{conv}", current, stream_out)
            break
        ties = conv == "conv2" and is_depthwise(middle)
        site_out = current if ties else f"{name}.{conv}"
        yield ConvSite(f"{name}.{conv}", current, site_out, split_groups=groups)
        current = site_out
    shortcut = block.downsample
    for child, module in [] if shortcut is None else shortcut.named_children():
        if isinstance(module, nn.Conv2d):
            yield ConvSite(f"{name}.downsample.{child}", stream_in, stream_out)
