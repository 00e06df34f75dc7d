"""A deployed network cut into its layers, each to be timed by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from octnas.architecture import Architecture
from octnas.nn.deploy import DeployedBlock, DeployedConv, deploy
from octnas.nn.octave import Features, OctaveTensor, empty_high
from octnas.nn.sites import conv_sites, identity_entries, stages
from octnas.nn.supernet import build


@dataclass(frozen=True)
class LayerSite:
    """A layer and the sites that decide its time.

    Attributes:
        name: of its convolution in the model; of the block's shortcut where a stream of one site
            is split as another's, without a convolution.
        site_in: site of the input; None for an image.
        site_out: site of the output.
    """

    name: str
    site_in: str | None
    site_out: str


@dataclass(frozen=True)
class Layer:
    """A convolution with what follows it in a deployed network, up to the next convolution.

    Attributes:
        name: see `LayerSite`.
        module: takes what `inputs` describes, high and low parts one after another, those of what
            is added to the result last; gives a tuple of tensors.
        inputs: their shapes.
    """

    name: str
    module: nn.Module
    inputs: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        """The same for layers that compute the same, whatever their weights."""
        hows = [m.how for m in self.module.modules() if isinstance(m, DeployedConv)]
        text = f"{self.module!r} {hows} {self.inputs}"
        return sha256(text.encode()).hexdigest()[:16]


def layer_sites(model: nn.Module) -> tuple[LayerSite, ...]:
    """The layers of a timm ResNet that is not deployed, in the order of `deployed_layers`.

    Raises:
        UnsupportedModelError: as `octnas.nn.sites.conv_sites` raises it.
    """
    convs = conv_sites(model)
    assert isinstance(model, ResNet)
    entries = {stream: block for block, stream in identity_entries(model)}
    names = {f"{name}.0": name for name, _ in stages(model)}
    stem = [conv for conv in convs if not conv.name.startswith("layer")]
    found = [LayerSite(conv.name, conv.site_in, conv.site_out) for conv in stem]
    stream = stem[-1].site_out
    for stage, blocks in stages(model):
        for index in range(len(blocks)):
            block = f"{stage}.{index}"
            own = [conv for conv in convs if conv.name.startswith(f"{block}.")]
            found += [LayerSite(conv.name, conv.site_in, conv.site_out) for conv in own]
            if names.get(block) in entries:
                found.append(LayerSite(f"{block}.downsample", stream, stage))
        stream = stage
    return tuple(found)


def build_for_shapes(architecture: Architecture) -> nn.Module:
    """A network without values, deployed, that costs neither time nor memory."""
    with torch.device("meta"):
        return deploy(build(architecture, seed=0))


def deployed_layers(
    network: nn.Module, sites: Sequence[LayerSite], images: Tensor
) -> tuple[Layer, ...]:
    """The layers of a network that `octnas.deploy` has made.

    Global pooling and the classifier, the same for every architecture, belong to none.

    Args:
        network: on the device of the images; computed once.
        sites: of the network before it was deployed.
        images: ``(N, C, H, W)``.
    """
    segments = list(_segments(network))
    seen: dict[nn.Module, Features] = {}
    handles = [module.register_forward_pre_hook(_note_input(seen)) for module in _heads(segments)]
    handles += [
        block.downsample.register_forward_hook(_note_output(seen))
        for block in network.modules()
        if isinstance(block, DeployedBlock) and block.downsample is not None
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        _layer(site.name, segment, seen) for site, segment in zip(sites, segments, strict=True)
    )


@dataclass(frozen=True)
class _Segment:
    """Modules that follow each other; the shortcut of `block` is added before the last one."""

    modules: Sequence[nn.Module]
    block: DeployedBlock | None = None


class CutLayer(nn.Module):
    """A layer by itself.

    Args:
        modules: one after another.
        adds: whether something is added to what the first of them gives; then the last of them
            is the activation behind that.
        how: the input, and what is added, as feature maps of the right shapes.
    """

    def __init__(self, modules: Sequence[nn.Module], adds: bool, how: Sequence[Features]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.adds = adds
        self.parts = [_part(x) for x in how]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = list(tensors)
        x, *plus = [part.take(given) for part in self.parts]
        first, *after = self.layers
        if not self.adds:
            for module in self.layers:
                x = module(x)
        elif len(after) == 1:
            x = after[0](first(x, plus[0]))
        else:
            for module in (first, *after[:-1]):
                x = module(x)
            x += plus[0]  # type: ignore[operator]
            x = after[-1](x)
        return _tensors(x)


@dataclass(frozen=True)
class _Part:
    """How a feature map is made of tensors."""

    size: tuple[int, int]
    high: bool
    low: bool
    groups: int

    def take(self, given: list[Tensor]) -> Features:
        high = given.pop(0) if self.high else None
        if not self.low:
            assert high is not None
            return high
        low = given.pop(0)
        return OctaveTensor(empty_high(low, *self.size) if high is None else high, low, self.groups)


def _part(x: Features) -> _Part:
    if isinstance(x, Tensor):
        return _Part((x.shape[-2], x.shape[-1]), True, False, 1)
    size = (x.high.shape[-2], x.high.shape[-1])
    return _Part(size, x.high.shape[1] > 0, True, x.groups)


def _tensors(x: Features) -> tuple[Tensor, ...]:
    if isinstance(x, Tensor):
        return (x,)
    return (x.high, x.low) if x.high.shape[1] else (x.low,)


def _segments(network: nn.Module) -> Iterator[_Segment]:
    """The layers in the order in which timm's own names come, see `octnas.nn.sites`."""
    assert isinstance(network, ResNet)
    stem = [*_each(network.conv1), network.act1, *_each(network.maxpool)]
    yield from _cut(stem)
    for _, stage in stages(network):
        for block in stage:
            assert isinstance(block, DeployedBlock)
            yield from _cut(list(block.body))
            yield _Segment([block.last, *block.after, block.act], block)
            if block.downsample is not None:
                yield _Segment(list(block.downsample))


def _each(module: nn.Module) -> list[nn.Module]:
    modules = list(module) if isinstance(module, nn.Sequential) else [module]
    return [one for one in modules if not isinstance(one, nn.Identity)]


def _cut(modules: Sequence[nn.Module]) -> Iterator[_Segment]:
    """One segment from each convolution to the next."""
    starts = [i for i, module in enumerate(modules) if isinstance(module, DeployedConv)]
    for start, end in zip(starts, [*starts[1:], len(modules)], strict=True):
        yield _Segment(modules[start:end])


def _heads(segments: Sequence[_Segment]) -> Iterator[nn.Module]:
    for segment in segments:
        yield segment.modules[0]
        if segment.block is not None:
            yield segment.block


def _note_input(
    seen: dict[nn.Module, Features],
) -> Callable[[nn.Module, tuple[Features, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Features, ...]) -> None:
        seen[module] = inputs[0]

    return hook


def _note_output(
    seen: dict[nn.Module, Features],
) -> Callable[[nn.Module, object, Features], None]:
    def hook(module: nn.Module, _inputs: object, output: Features) -> None:
        seen[module] = output

    return hook


def _layer(name: str, segment: _Segment, seen: Mapping[nn.Module, Features]) -> Layer:
    block, features = segment.block, [seen[segment.modules[0]]]
    if block is not None:
        features.append(seen[block if block.downsample is None else block.downsample])
    module = CutLayer(segment.modules, block is not None, features)
    shapes = tuple(tuple(tensor.shape) for x in features for tensor in _tensors(x))
    return Layer(name, module.eval(), shapes)
