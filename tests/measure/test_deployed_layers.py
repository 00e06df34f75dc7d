"""A deployed network cut into layers, which one after another compute what it computes."""

import pytest
import torch

from octnas import deploy
from octnas.measure.deployed_layers import (
    Layer,
    LayerSite,
    build_for_shapes,
    deployed_layers,
    layer_sites,
)
from octnas.nn.backbone import create_backbone
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build
from octnas.space.search_space import SearchSpace
from tests.nn.reference import images, randomise

NETWORKS = ["resnet18", "resnet26", "resnet26d", "resnet26t", "seresnext26t_32x4d", "resnetblur18"]


def cut(name: str, alpha: float, *, meta: bool) -> tuple[SearchSpace, tuple[Layer, ...]]:
    space = search_space(name, (3, 64, 64), (0.0, alpha), fixed={})
    sites = layer_sites(create_backbone(name, {}, meta=True))
    architecture = space.uniform(alpha)
    if meta:
        x = torch.empty((2, 3, 64, 64), device="meta")
        return space, deployed_layers(build_for_shapes(architecture), sites, x)
    network = deploy(randomise(build(architecture, seed=0)))
    return space, deployed_layers(network, sites, images(2, 3, 64, 64))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_is_a_layer(name: str) -> None:
    space, layers = cut(name, 0.5, meta=True)
    names = [layer.name for layer in layers]
    convs = [conv.name for conv in space.convs]
    assert [name for name in names if name in convs] == convs
    # Beside them stand only the shortcuts where one site's stream is split as another's.
    assert all(name.endswith(".downsample") for name in names if name not in convs)
    sites = layer_sites(create_backbone(name, {}, meta=True))
    assert all(site.site_out in space.site for site in sites)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["resnet18", "seresnext26t_32x4d"])
def test_layers_compute_what_the_network_computes(name: str, alpha: float) -> None:
    """Chained by hand: the output of the last layer is what global pooling gets."""
    space = search_space(name, (3, 64, 64), (0.0, alpha), fixed={})
    sites = layer_sites(create_backbone(name, {}, meta=True))
    network, x = deploy(randomise(build(space.uniform(alpha), seed=0))), images(2, 3, 64, 64)
    layers = deployed_layers(network, sites, x)
    found: list[torch.Tensor] = []
    network.global_pool.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        network(x)
        blocks = [layers[i : i + 1] for i in range(len(layers))]
        out = _chain(blocks, sites, x)
    expected = found[0]
    parts = (expected,) if isinstance(expected, torch.Tensor) else (expected.high, expected.low)
    for given, wanted in zip(out, [part for part in parts if part.shape[1]], strict=True):
        torch.testing.assert_close(given, wanted)


def _chain(
    blocks: list[tuple[Layer, ...]], sites: tuple[LayerSite, ...], x: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The layers one after another; a block's shortcut is computed before its last layer."""
    by_block: dict[str, list[Layer]] = {}
    for (layer,), site in zip(blocks, sites, strict=True):
        key = ".".join(site.name.split(".")[:2]) if site.name.startswith("layer") else "stem"
        by_block.setdefault(key, []).append(layer)
    now: tuple[torch.Tensor, ...] = (x,)
    for key, layers in by_block.items():
        shortcut = now
        body = [layer for layer in layers if ".downsample" not in layer.name]
        for layer in layers:
            if ".downsample" in layer.name:
                shortcut = layer.module(*now)
        for layer in body[:-1] if key != "stem" else body:
            now = layer.module(*now)
        if key != "stem":
            now = body[-1].module(*now, *shortcut)
    return now


def test_equal_layers_have_equal_keys_and_others_do_not() -> None:
    _, layers = cut("resnet18", 0.5, meta=True)
    key = {layer.name: layer.key for layer in layers}
    assert key["layer1.0.conv2"] == key["layer1.1.conv2"]
    assert key["layer1.0.conv1"] != key["layer1.0.conv2"] != key["layer2.0.conv2"]
    _, others = cut("resnet18", 0.25, meta=True)
    assert not set(key.values()) & {layer.key for layer in others}


def test_values_do_not_change_a_key() -> None:
    _, real = cut("resnet18", 0.5, meta=False)
    _, shapes = cut("resnet18", 0.5, meta=True)
    assert [layer.key for layer in real] == [layer.key for layer in shapes]
