from typing import Any

import pytest
import torch

from octnas.nn.cost import cost
from octnas.nn.plain import plain_network
from octnas.nn.supernet import build
from octnas.results.networks import NARROWER, SHALLOWER, SMALLER_IMAGES
from octnas.space.architecture import Architecture

BACKBONES: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "resnet50": ("resnet50", (3, 64, 64), {}),
    "resnet18": ("resnet18", (3, 64, 64), {"num_classes": 7}),
    "small": ("thumbnail_resnet", (3, 32, 32), {"layers": [2, 2, 2], "channels": [8, 16, 32]}),
}


@pytest.mark.parametrize("role", [NARROWER, SHALLOWER, SMALLER_IMAGES])
@pytest.mark.parametrize(
    "name", [pytest.param("resnet50", marks=pytest.mark.slow), "resnet18", "small"]
)
def test_it_is_the_cheapest_that_has_enough_macs(name: str, role: str) -> None:
    backbone, size, args = BACKBONES[name]
    whole = Architecture(backbone, size, {"layer1": 0.5}, args)
    vanilla = cost(backbone, input_size=size, backbone_args=args).macs
    at_least = round(0.6 * vanilla)
    found = plain_network(role, whole, at_least)
    assert found is not None
    assert at_least <= cost(found).macs < (0.9 if role == SHALLOWER else 0.7) * vanilla
    assert not any(found.alphas.values())
    assert found.stride_mode == "timm"
    changed = {
        key
        for key in {**args, **found.backbone_args}
        if args.get(key) != found.backbone_args.get(key)
    }
    assert changed == {NARROWER: {"channels"}, SHALLOWER: {"layers"}, SMALLER_IMAGES: set()}[role]
    assert (found.input_size != size) == (role == SMALLER_IMAGES)
    network = build(found, seed=0)
    assert network(torch.randn(2, *found.input_size)).shape == (2, args.get("num_classes", 1000))


@pytest.mark.parametrize("share", [0.25, 0.3, 0.331, 0.5, 0.7])
def test_a_narrower_network_of_few_channels_is_near_and_even(share: float) -> None:
    """One step of all widths is up to a fifth of the MACs here."""
    args = {"layers": [1, 1, 1], "channels": [16, 32, 64]}
    whole = Architecture("thumbnail_resnet", (3, 16, 16), {}, args)
    at_least = round(share * cost(whole).macs)
    found = plain_network(NARROWER, whole, at_least)
    assert found is not None
    assert at_least <= cost(found).macs <= 1.03 * at_least
    widths = found.backbone_args["channels"]
    shares = [width / full for width, full in zip(widths, args["channels"], strict=True)]
    assert max(shares) / min(shares) <= 1.35


def test_a_little_less_is_not_enough() -> None:
    backbone, size, args = BACKBONES["small"]
    whole = Architecture(backbone, size, {}, args)
    found = plain_network(SMALLER_IMAGES, whole, 500_000)
    assert found is not None
    side = found.input_size[1] - 1
    assert cost(Architecture(backbone, (3, side, side), {}, args)).macs < 500_000


def test_where_there_is_none() -> None:
    """All of the MACs, one block in every stage, a backbone without widths."""
    backbone, size, args = BACKBONES["small"]
    whole = Architecture(backbone, size, {}, args)
    assert plain_network(NARROWER, whole, cost(whole).macs) is None
    single = Architecture(backbone, size, {}, {**args, "layers": [1, 1, 1]})
    assert plain_network(SHALLOWER, single, cost(single).macs // 2) is None
