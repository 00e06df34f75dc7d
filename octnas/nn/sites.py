"""Which convolutions of a timm ResNet share one α: the sites.

Every convolution inside a block has its own site, named after it (``layer1.0.conv1``). What is
added must share one: the last convolution of every block of a stage and the projection shortcut
form the stage's residual stream (``layer1``). The stem is ``stem``; of a deep stem, ``stem.0``,
``stem.1`` and so on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from octnas.errors import UnsupportedModelError


@dataclass(frozen=True)
class ConvSite:
    """A convolution and the sites at its two ends.

    Attributes:
        name: of the module in the model.
        site_in: site of the input; None where it is an image.
        site_out: site of the output.
        stem: whether it belongs to the stem; there a stride stays a stride.
    """

    name: str
    site_in: str | None
    site_out: str
    stem: bool = False


def conv_sites(model: nn.Module) -> tuple[ConvSite, ...]:
    """The convolutions of a timm ResNet in the order in which data reaches them.

    Raises:
        UnsupportedModelError: the model is not a ``timm.models.resnet.ResNet`` of basic or
            bottleneck blocks.
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


def stages(model: ResNet) -> Iterator[tuple[str, nn.Sequential]]:
    """The stages of a ResNet by name: ``layer1`` and so on."""
    for name, module in model.named_children():
        # A network with fewer than four stages has an identity in the place of the others.
        if name.startswith("layer") and isinstance(module, nn.Sequential):
            yield name, module


def identity_entries(model: ResNet) -> Iterator[tuple[nn.Module, str]]:
    """The first blocks that begin with an identity shortcut, with the stage's stream.

    There the stream of one site is added to that of another.
    """
    for name, stage in stages(model):
        if stage[0].downsample is None:
            yield stage[0], name


def _stem(model: ResNet) -> Iterator[ConvSite]:
    if isinstance(model.conv1, nn.Conv2d):
        yield ConvSite("conv1", None, "stem", stem=True)
        return
    previous = None
    convs = [name for name, module in model.conv1.named_children() if isinstance(module, nn.Conv2d)]
    for index, name in enumerate(convs):
        site = f"stem.{index}"
        yield ConvSite(f"conv1.{name}", previous, site, stem=True)
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
    current = stream_in
    for conv in inner:
        site_out = stream_out if conv == inner[-1] else f"{name}.{conv}"
        yield ConvSite(f"{name}.{conv}", current, site_out)
        current = site_out
    shortcut = block.downsample
    for child, module in [] if shortcut is None else shortcut.named_children():
        if isinstance(module, nn.Conv2d):
            yield ConvSite(f"{name}.downsample.{child}", stream_in, stream_out)
