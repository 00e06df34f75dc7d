import json
from typing import Any

import pytest

import octnas
from octnas import Architecture
from octnas.errors import ArchitectureError, SettingError
from octnas.nn.search_space import search_space

SIZE = (3, 75, 100)
MIXED = {"layer1": 0.3, "layer2.0.conv1": 1.0, "layer3": 0.7}


def test_equals_the_search_spaces_cost() -> None:
    space = search_space("resnet18", SIZE, (0.0,), fixed={}, channel_multiple=8)
    found = octnas.cost("resnet18", MIXED, input_size=SIZE, channel_multiple=8)
    assert found.cost == space.cost(MIXED)
    assert found.vanilla_macs == space.vanilla_macs
    assert found.architecture == space.architecture(MIXED)


def test_sites_add_up() -> None:
    found = octnas.cost("resnet50", 0.5)
    classifier = 2048 * 1000
    assert sum(site.macs for site in found.sites) + classifier == found.macs
    by_name = {site.name: site for site in found.sites}
    assert (by_name["stem"].alpha, by_name["layer4"].alpha) == (0.0, 0.0)
    assert by_name["layer3"].alpha == 0.5
    assert (by_name["layer3"].channels, by_name["layer3"].low_channels) == (1024, 512)
    assert by_name["stem"].macs == 3 * 64 * 7 * 7 * 112 * 112


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("stride_mode", ["timm", "paper"])
def test_an_architecture_brings_everything(multiple: int, stride_mode: str) -> None:
    architecture = Architecture(
        "thumbnail_resnet",
        (1, 15, 13),
        {"layer1": 0.4, "layer2": 0.9},
        backbone_args={"num_classes": 3},
        channel_multiple=multiple,
        stride_mode=stride_mode,  # type: ignore[arg-type]
    )
    found = octnas.cost(architecture)
    low = {site.name: site.low_channels for site in found.sites}
    assert (low["layer1"], low["layer2"]) == ((6, 28) if multiple == 1 else (0, 24))
    assert found.architecture.stride_mode == stride_mode
    assert found.architecture.input_size == (1, 15, 13)
    larger = octnas.cost(architecture, input_size=(1, 30, 26))
    assert larger.macs > 3 * found.macs
    assert larger.params == found.params
    by_name = octnas.cost(
        "thumbnail_resnet", architecture, input_size=(1, 15, 13), backbone_args={"num_classes": 3}
    )
    assert by_name == found


def test_json_carries_the_figures() -> None:
    found = octnas.cost("resnet18", 0.5, input_size=SIZE)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["macs"] == found.macs
    assert document["params"] == found.params == 11_689_512  # timm's and torchvision's ResNet-18
    assert document["activation_bytes"] == found.activation_bytes
    assert {"name", "channels", "low_channels"} <= set(document["sites"][0])
    del document["architecture"]["id"]
    assert Architecture.from_dict(document["architecture"]) == found.architecture


def test_the_input_size_is_timms_by_default() -> None:
    assert octnas.cost("resnet18").macs == octnas.cost("resnet18", input_size=(3, 224, 224)).macs


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        (("resnet5O",), {}, SettingError),
        (("resnet18", 1.5), {}, ArchitectureError),
        (("resnet18", {"nowhere": 0.5}), {}, ArchitectureError),
        (("resnet18",), {"channel_multiple": 0}, SettingError),
        (("resnet18",), {"channel_multiple": 1.5}, SettingError),
    ],
    ids=str,
)
def test_mistakes_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        octnas.cost(*args, **kwargs)
