"""A deployed network cut into its layers, each to be timed by itself.

Every layer of a search space at every pair of choices, each distinct one once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        UnsupportedModelError: as `octnas.nn.octavize.conv_sites` raises it.
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
        """Run the parts in turn."""
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
    """The layers in the order in which timm's own names come, see `octnas.nn.octavize`."""
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


Pair = tuple[float, float]
"""Realised α of a layer's input and output; that of an image is 0."""


@dataclass(frozen=True)
class PlannedLayer:
    """A layer of the network and what to time of it.

    Attributes:
        site: where it stands.
        keys: of its modules, by pair.
    """

    site: LayerSite
    keys: Mapping[Pair, str]

    def times(self, seconds: Mapping[str, float]) -> LayerTimes:
        """With the time of each key."""
        by_pair = {pair: seconds[key] for pair, key in self.keys.items()}
        return LayerTimes(self.site.name, self.site.site_in, self.site.site_out, by_pair)


@dataclass(frozen=True)
class LayerPlan:
    """What is timed for a table.

    Attributes:
        layers: of the network.
        modules: by key; they hold no values, see `materialise`.
    """

    layers: tuple[PlannedLayer, ...]
    modules: Mapping[str, Layer]


def plan_layers(space: SearchSpace, batch: int) -> LayerPlan:
    """The layers of a search space's network, at all pairs of α that its choices allow.

    Those of the vanilla network are among them. Nothing is computed.

    Args:
        space: the search space.
        batch: images at a time.
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
            pair = _pair(site, alphas)
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
                # Small enough that nothing overflows, and nothing is subnormal.
                values.copy_(torch.rand(values.shape, generator=generator) / max(1, values.numel()))
    return module, [torch.rand(shape, generator=generator) for shape in layer.inputs]


def _pairs(space: SearchSpace, site: LayerSite) -> set[Pair]:
    """α of input and output that the choices allow, and those of the vanilla network."""
    out = space.site[site.site_out].choices
    into = (0.0,) if site.site_in is None else space.site[site.site_in].choices
    tied = site.site_in == site.site_out
    return {(a, b) for a in into for b in out if not tied or a == b} | {(0.0, 0.0)}


def _pair(site: LayerSite, alphas: Mapping[str, float]) -> Pair:
    return (0.0 if site.site_in is None else alphas[site.site_in], alphas[site.site_out])


def _covering(
    space: SearchSpace, sites: tuple[LayerSite, ...], wanted: set[tuple[str, Pair]]
) -> Iterator[dict[str, float]]:
    """α by site, again and again, until every wanted pair of every layer has been among them.

    Args:
        space: the search space.
        sites: of its layers.
        wanted: what is found is taken out by the caller.
    """
    yield dict.fromkeys(space.site, 0.0)
    by_name, rng = {site.name: site for site in sites}, np.random.default_rng(0)
    while wanted:
        # A random architecture covers a pair of nearly every layer; one is made sure of.
        alphas = {site.name: float(rng.choice(site.choices)) for site in space.sites}
        name, (alpha_in, alpha_out) = min(wanted)
        site = by_name[name]
        if site.site_in is not None:
            alphas[site.site_in] = alpha_in
        yield alphas | {site.site_out: alpha_out}
