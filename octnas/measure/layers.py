"""Every layer of a search space at every pair of choices, each distinct one once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from octnas.latency_records import LayerTimes
from octnas.nn.backbone import create_backbone
from octnas.nn.deployed_layers import (
    Layer,
    LayerSite,
    build_for_shapes,
    deployed_layers,
    layer_sites,
)
from octnas.space import SearchSpace

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
