"""Small networks of every family of timm's ResNets, and random α for them."""

import random
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

import octnas.nn
from octnas.nn.octavize import conv_sites
from tests.nn.reference import randomise

assert octnas.nn is not None  # registers thumbnail_resnet

Family = tuple[str, dict[str, Any]]

SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "num_classes": 5}
SENET = {"cardinality": 4, "base_width": 32, "channels": (8, 16, 24, 32), "stem_width": 4}

# name: timm's model, and what makes it small or a variant.
FAMILIES: dict[str, Family] = {
    "thumbnail": ("thumbnail_resnet", {"layers": (2, 1, 1), "channels": (8, 12, 16)}),
    "basic": ("resnet18", {"layers": (2, 1, 1, 1), "channels": (64, 12, 16, 24)}),
    "basic, dilated": ("resnet18", {"output_stride": 8}),
    "basic, T": ("resnet10t", {"stem_width": 4}),
    "bottleneck": ("resnet50", {"layers": (1, 2, 1, 1)}),
    "wide": ("wide_resnet50_2", {}),
    "deep stem": ("resnet50c", {"stem_width": 4}),
    "D": ("resnet50d", {"stem_width": 4, "layers": (1, 2, 1, 1)}),
    "D, dilated": ("resnet50d", {"stem_width": 4, "output_stride": 8}),
    "T": ("resnet50t", {"stem_width": 8}),
    "ResNeXt": ("resnext50_32x4d", {"cardinality": 4, "base_width": 32, "layers": (2, 1, 1, 1)}),
    "depthwise": ("resnext50_32x4d", {"cardinality": 8, "base_width": 8, "layers": (2, 1, 1, 1)}),
    "SE, basic": ("seresnet18", {}),
    "SE": ("seresnet50", {}),
    "ESE": ("resnet50", {"block_args": {"attn_layer": "ese"}}),
    "ECA": ("ecaresnet50d", {"stem_width": 4}),
    "ECA, MLP": ("resnet50", {"block_args": {"attn_layer": "ecam"}}),
    "SE-ResNeXt-T": ("seresnext26t_32x4d", {"cardinality": 4, "base_width": 32, "stem_width": 4}),
    "SENet": ("senet154", SENET),
    "anti-aliased": ("resnetaa50d", {"stem_width": 4}),
    "blurred": ("resnetblur50", {}),
    "blurred, basic": ("resnetblur18", {"output_stride": 16}),
    "RS": ("resnetrs50", {"stem_width": 4}),
    "SiLU": ("resnet50", {"act_layer": "silu", "global_pool": "catavgmax"}),
    "two kinds of blocks": ("test_resnet", {"stem_width": 4, "channels": (8, 12, 16, 24)}),
}


def skip_unless_exportable(name: str) -> None:
    """Skip a test of ONNX files where torch's exporter does not know a pool of the family."""
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
    if old and "catavgmax" in FAMILIES[name][1].values():
        pytest.skip(f"torch {torch.__version__} knows no adaptive max pooling in ONNX")


def arguments(name: str) -> Family:
    """timm's model and all arguments of a family."""
    backbone, kwargs = FAMILIES[name]
    own = {"num_classes": 5} if backbone in ("test_resnet", "thumbnail_resnet") else SMALL
    return backbone, {**own, **kwargs}


def create(name: str, **kwargs: Any) -> ResNet:
    """A plain network of the family, with the same random weights every time."""
    backbone, args = arguments(name)
    torch.manual_seed(0)
    model: nn.Module = randomise(timm.create_model(backbone, **{**args, **kwargs}))
    assert isinstance(model, ResNet)
    return model


def fingerprint(model: nn.Module) -> list[tuple[str, type, Any]]:
    """Every module's class and attributes, to show that nothing was changed."""
    return [(name, type(m), sorted(vars(m))) for name, m in model.named_modules()]


def site_names(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(conv.site_out for conv in conv_sites(model)))


def random_alphas(model: nn.Module, seed: int) -> dict[str, float]:
    """Any α at every site, 0 and 1 among them; for odd seeds one stage is entered at 0."""
    rng = random.Random(seed)
    choices = [0.0, 0.25, 0.3, 0.5, 0.5, 0.75, 1.0]
    alphas = {site: rng.choice(choices) for site in site_names(model)}
    if seed % 2:
        stage = rng.choice([2, 3])
        zero = {site: 0.0 for site in alphas if site.startswith(f"layer{stage}")}
        alphas |= {**zero, f"layer{stage - 1}": 0.0}
    return alphas


def size_of(name: str, training: bool = False) -> tuple[int, int]:
    """Images that make odd maps, as far as timm takes them; large enough to train on."""
    if name == "anti-aliased":
        # The pools in its blocks drop odd borders, those in its shortcuts keep them.
        return (65, 66) if training else (33, 66)
    if name == "thumbnail":
        return (15, 13)
    return (65, 59) if training else (37, 43)
