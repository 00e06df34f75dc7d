"""Whole octave networks on images of many sizes, against the slow reference."""

import pytest
import timm
import torch

from octnas import OctaveConv2d, octavize
from tests.nn.families import FAMILIES, create, random_alphas
from tests.nn.reference import images
from tests.nn.test_deploy import some
from tests.nn.test_networks import check_against_reference

# Images that end in maps of 7×7 pixels, as those of 224 pixels do in a plain ResNet.
SEVEN = {
    "thumbnail": (25, 27),
    "basic, dilated": (51, 53),
    "D, dilated": (51, 53),
    "blurred, basic": (99, 101),
    "anti-aliased": (224, 224),  # its pools drop odd borders
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_octave_last_stage_of_7x7_pixels(name: str) -> None:
    """The paper keeps it at α = 0 for its odd maps; here 7×7 pixels meet 4×4."""
    model = create(name).double().eval()
    x = images(1, 3, *SEVEN.get(name, (193, 195)), dtype=torch.float64)
    with torch.no_grad():
        assert model.forward_features(x).shape[-2:] == (7, 7)
    alphas, last = random_alphas(model, 6), "layer3" if name == "thumbnail" else "layer4"
    alphas |= {site: max(alpha, 0.5) for site, alpha in alphas.items() if site.startswith(last)}
    check_against_reference(model, x, alphas, 1, "timm")
    convs = [module for module in model.modules() if isinstance(module, OctaveConv2d)]
    assert all(conv.low_channels for conv in convs if conv.site.startswith(last))


@pytest.mark.parametrize("name", some("SE-ResNeXt-T"))
def test_large_odd_images_are_those_of_the_reference(name: str) -> None:
    """Maps of 113×97, 57×49, 29×25, 15×13 and 8×7."""
    model = create(name).double().eval()
    x = images(1, 3, 225, 193, dtype=torch.float64)
    check_against_reference(model, x, random_alphas(model, 4), 1, "timm")


@pytest.mark.parametrize("size", [(7, 7), (9, 16), (1, 5)], ids=str)
@pytest.mark.parametrize("name", ["ResNeXt", "D", "SE, basic"])
def test_tiny_images_are_those_of_the_reference(name: str, size: tuple[int, int]) -> None:
    model = create(name).double().eval()
    x = images(2, 3, *size, dtype=torch.float64)
    check_against_reference(model, x, random_alphas(model, 5), 1, "timm")


@pytest.mark.parametrize("size", [(225, 193), (75, 100), (1, 1)], ids=str)
def test_images_of_any_size_pass(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = octavize(timm.create_model("resnet18"), {"*": 0.5}).eval()
        assert model(torch.empty(1, 3, *size)).shape == (1, 1000)
