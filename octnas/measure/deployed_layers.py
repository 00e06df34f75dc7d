"""A deployed network cut into layers, each distinct one of a search space to be timed once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from octnas.nn.backbone import create_backbone
from octnas.nn.deploy import DeployedBlock, DeployedConv, deploy
from octnas.nn.octave import Features, OctaveTensor, empty_high
from octnas.nn.octavize import conv_sites, identity_entries, stages
from octnas.nn.supernet import build
from octnas.space.architecture import Architecture
from octnas.space.latency import LayerTimes
from octnas.space.search_space import SearchSpace


@dataclass(frozen=True)
class LayerSite:
    """A layer and the sites that determine its time.

    Attributes:
        name: of its convolution in the model, or of a block's shortcut that changes the split of a
            stream without a convolution.
        site_in: site of the input; None for an image.
        site_out: site of the output.
    """

    name: str
    site_in: str | None
    site_out: str


@dataclass(frozen=True)
class Layer:
    """A convolution of a deployed network and the modules up to the next convolution.

    Attributes:
        name: see `LayerSite`.
        module: from the high and low parts of the input, then those of the summand if there is
            one, to a tuple of tensors.
        inputs: their shapes.
    """

    name: str
    module: nn.Module
    inputs: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        """Equal for layers that differ in their weights only."""
        hows = [m.how for m in self.module.modules() if isinstance(m, DeployedConv)]
        text = f"{self.module!r} {hows} {self.inputs}"
        return sha256(text.encode()).hexdigest()[:16]


def layer_sites(model: nn.Module) -> tuple[LayerSite, ...]:
    """The layers of a timm ResNet, not deployed yet, in the order of `deployed_layers`.

    Raises:
        UnsupportedModelError: see `octnas.nn.octavize.conv_sites`.
    """
    convs = conv_sites(model)
    assert isinstance(model, ResNet)
    entries = {stream for _, stream in identity_entries(model)}
    stem = [conv for conv in convs if not conv.name.startswith("layer")]
    found = [LayerSite(conv.name, conv.site_in, conv.site_out) for conv in stem]
    stream = stem[-1].site_out
    for stage, blocks in stages(model):
        for index in range(len(blocks)):
            block = f"{stage}.{index}"
            own = [conv for conv in convs if conv.name.startswith(f"{block}.")]
            found += [LayerSite(conv.name, conv.site_in, conv.site_out) for conv in own]
            if index == 0 and stage in entries:
                found.append(LayerSite(f"{block}.downsample", stream, stage))
        stream = stage
    return tuple(found)


def build_for_shapes(architecture: Architecture) -> nn.Module:
    """A deployed network on the meta device."""
    with torch.device("meta"):
        return deploy(build(architecture, seed=0))


def deployed_layers(
    network: nn.Module, sites: Sequence[LayerSite], images: Tensor
) -> tuple[Layer, ...]:
    """The layers of a deployed network, without global pooling and classifier.

    Args:
        network: see `octnas.deploy`; is run once.
        sites: of the network before it was deployed.
        images: ``(N, C, H, W)``, on the network's device.
    """
    segments = list(_segments(network))
    seen: dict[nn.Module, Features] = {}

    def note_input(module: nn.Module, inputs: tuple[Features, ...]) -> None:
        seen[module] = inputs[0]

    def note_output(module: nn.Module, _inputs: object, output: Features) -> None:
        seen[module] = output

    handles = []
    for segment in segments:
        handles.append(segment.modules[0].register_forward_pre_hook(note_input))
        if segment.block is not None:
            handles.append(segment.block.register_forward_pre_hook(note_input))
            if segment.block.downsample is not None:
                handles.append(segment.block.downsample.register_forward_hook(note_output))
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
    """A chain of modules; the shortcut of `block` is added before the last one."""

    modules: Sequence[nn.Module]
    block: DeployedBlock | None = None


class CutLayer(nn.Module):
    """A single layer: a chain of modules.

    Args:
        modules: with a summand, the last one is the activation after the sum.
        how: the input, and the summand if there is one, as feature maps of the right shapes.
    """

    def __init__(self, modules: Sequence[nn.Module], how: Sequence[Features]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.parts = [_part(x) for x in how]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the parts one after the other."""
        given = list(tensors)
        x, *plus = [part.take(given) for part in self.parts]
        first, *after = self.layers
        if not plus:
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
    """How to assemble a feature map from tensors."""

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
    """The layers in the order of `layer_sites`."""
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


def _layer(name: str, segment: _Segment, seen: Mapping[nn.Module, Features]) -> Layer:
    block, features = segment.block, [seen[segment.modules[0]]]
    if block is not None:
        features.append(seen[block if block.downsample is None else block.downsample])
    module = CutLayer(segment.modules, features)
    shapes = tuple(tuple(tensor.shape) for x in features for tensor in _tensors(x))
    return Layer(name, module.eval(), shapes)


Pair = tuple[float, float]
"""Quantized α of a layer's input (0 for an image) and output."""


@dataclass(frozen=True)
class PlannedLayer:
    """A layer of the network, with the keys of its modules by pair."""

    site: LayerSite
    keys: Mapping[Pair, str]

    def times(self, seconds: Mapping[str, float]) -> LayerTimes:
        """Its times, from those by key."""
        by_pair = {pair: seconds[key] for pair, key in self.keys.items()}
        return LayerTimes(self.site.name, self.site.site_in, self.site.site_out, by_pair)


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a table, and the modules to time by key, on the meta device."""

    layers: tuple[PlannedLayer, ...]
    modules: Mapping[str, Layer]


def plan_layers(space: SearchSpace, batch: int) -> LayerPlan:
    """The layers of a search space's network at all pairs of choices, and of the vanilla network.

    For ``batch`` images at a time.
    """
    args = {"in_chans": space.input_size[0], **space.backbone_args}
    sites = layer_sites(create_backbone(space.backbone, args, meta=True))
    images = torch.empty((batch, *space.input_size), device="meta")
    keys: dict[str, dict[Pair, str]] = {site.name: {} for site in sites}
    modules: dict[str, Layer] = {}
    wanted = {(site.name, pair) for site in sites for pair in _pairs(space, site)}
    for alphas in _covering(space, sites, wanted):
        network = build_for_shapes(space.architecture(alphas))
        for site, layer in zip(sites, deployed_layers(network, sites, images), strict=True):
            pair = (alphas[site.site_in] if site.site_in else 0.0, alphas[site.site_out])
            if pair in _pairs(space, site):
                modules.setdefault(layer.key, layer)
                keys[site.name][pair] = layer.key
                wanted.discard((site.name, pair))
    return LayerPlan(tuple(PlannedLayer(site, keys[site.name]) for site in sites), modules)


def materialise(layer: Layer) -> tuple[nn.Module, list[Tensor]]:
    """A layer with random weights, and random inputs, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    module = layer.module.to_empty(device="cpu")
    with torch.no_grad():
        for values in (*module.parameters(), *module.buffers()):
            if values.is_floating_point():
                # Small enough not to overflow, and not subnormal.
                values.copy_(torch.rand(values.shape, generator=generator) / max(1, values.numel()))
    return module, [torch.rand(shape, generator=generator) for shape in layer.inputs]


def _pairs(space: SearchSpace, site: LayerSite) -> set[Pair]:
    """The pairs that the choices allow, and that of the vanilla network."""
    out = space.site[site.site_out].choices
    into = (0.0,) if site.site_in is None else space.site[site.site_in].choices
    tied = site.site_in == site.site_out
    return {(a, b) for a in into for b in out if not tied or a == b} | {(0.0, 0.0)}


def _covering(
    space: SearchSpace, sites: tuple[LayerSite, ...], wanted: set[tuple[str, Pair]]
) -> Iterator[dict[str, float]]:
    """α by site until ``wanted`` is empty, from which the caller removes the pairs covered."""
    yield dict(space.vanilla.alphas)
    by_name, rng = {site.name: site for site in sites}, np.random.default_rng(0)
    while wanted:
        # A random architecture covers a pair of nearly every layer; one wanted pair is set.
        alphas = {site.name: float(rng.choice(site.choices)) for site in space.sites}
        name, (alpha_in, alpha_out) = min(wanted)
        site = by_name[name]
        if site.site_in is not None:
            alphas[site.site_in] = alpha_in
        yield alphas | {site.site_out: alpha_out}
