"""Tests."""

import random
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import octnas
from octnas import Architecture, OctaveConv2d, OctaveTensor, octavize
from octnas.errors import ArchitectureError, SettingError, SettingWarning, UnsupportedModelError
from octnas.nn import build
from octnas.nn.backbone import create_backbone
from octnas.nn.search_space import search_space
from octnas.space.search_space import SearchSpace

CHOICES = (0.0, 0.25, 0.5, 1.0)
FULL_SIZE = ("resnet26", "resnet34", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d")
NETWORKS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "resnet18": ("resnet18", (3, 224, 224), {}),
    "resnet18, odd": ("resnet18", (3, 225, 193), {}),
    "resnet18, small": ("resnet18", (3, 75, 100), {}),
    "resnet18, dilated": ("resnet18", (3, 75, 100), {"output_stride": 8}),
    "resnet50": ("resnet50", (3, 224, 224), {}),
    **{name: (name, (3, 224, 224), {}) for name in FULL_SIZE},
    "resnet50, odd": ("resnet50", (3, 225, 193), {}),
    "resnet50, gray": ("resnet50", (1, 75, 100), {"num_classes": 0}),
    "resnet50c": ("resnet50c", (3, 75, 100), {}),  # a deep stem of three convolutions
    "thumbnail": ("thumbnail_resnet", (3, 16, 16), {}),
    "thumbnail, odd": ("thumbnail_resnet", (1, 15, 13), {"stem_stride": 2, "layers": [1, 2, 1]}),
    "thumbnail, odd widths": ("thumbnail_resnet", (3, 9, 9), {"channels": [6, 10, 14]}),
}


def space_of(name: str, **kwargs: Any) -> SearchSpace:
    backbone, size, args = NETWORKS[name]
    return search_space(backbone, size, CHOICES, backbone_args=args, fixed={}, **kwargs)


def random_architecture(space: SearchSpace, seed: int) -> Architecture:
    """Any α, not only the choices; 0 and 1 often."""
    rng = random.Random(seed)
    return space.architecture(
        {
            site.name: rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()])
            for site in space.sites
        }
    )


@pytest.mark.parametrize(
    ("stride_mode", "multiple", "seed"),
    [
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("timm", 1, 0), ("paper", 1, 1))),
        *(("paper", 2, 2), ("timm", 8, 3)),
    ],
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in FULL_SIZE)) for name in NETWORKS],
)
def test_macs_are_what_torch_counts(name: str, stride_mode: str, multiple: int, seed: int) -> None:
    space = space_of(name, stride_mode=stride_mode, channel_multiple=multiple)
    architecture = random_architecture(space, seed)
    model = create_backbone(space.backbone, space.backbone_args, meta=True)
    octavize(model.eval(), architecture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *space.input_size, device="meta"))
    assert 2 * space.cost(architecture).macs == counter.get_total_flops()
    assert space.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18, small", "thumbnail", "thumbnail, odd", "resnet50c"])
def test_activations_are_the_convolutions_outputs(name: str) -> None:
    space = space_of(name, channel_multiple=2)
    for seed in range(2):
        architecture = random_architecture(space, seed)
        sizes: list[int] = []

        def note(
            _module: nn.Module, _inputs: object, y: Tensor | OctaveTensor, sizes: list[int] = sizes
        ) -> None:
            parts = [y] if isinstance(y, Tensor) else [y.high, y.low]
            sizes.append(sum(part.numel() * part.element_size() for part in parts))

        model = build(architecture, seed=0).eval()
        for module in model.modules():
            if isinstance(module, OctaveConv2d):
                module.register_forward_hook(note)
        with torch.no_grad():
            model(torch.zeros(1, *space.input_size))
        assert len(sizes) == len(space.convs)
        assert space.cost(architecture).activation_bytes == sum(sizes)
        assert octnas.cost(architecture).activation_bytes == sum(sizes)


def test_sites_follow_the_data() -> None:
    space = search_space("resnet18", (3, 64, 64), CHOICES)
    expected = ["stem"]
    for stage in range(1, 5):
        first, second = f"layer{stage}.0.conv1", f"layer{stage}.1.conv1"
        expected += [first, f"layer{stage}", second]
    assert [site.name for site in space.sites] == expected
    assert [conv.name for conv in space.convs[:3]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert space.sites[0].depth == 0
    assert all(0 <= site.depth <= 1 for site in space.sites)
    streams = [space.site[f"layer{stage}"].depth for stage in range(1, 5)]
    assert streams == sorted(streams)


def test_by_default_the_stem_and_the_last_stage_are_fixed() -> None:
    space = search_space("thumbnail_resnet", (3, 16, 16), CHOICES)
    names = ["layer1.0.conv1", "layer1", "layer2.0.conv1", "layer2"]
    assert [site.name for site in space.searchable] == names
    assert {site.choices for site in space.sites if not site.searchable} == {(0.0,)}


def test_fixed_patterns_replace_the_default() -> None:
    fixed = {"layer*": 0.5, "layer2.*": 0.9, "layer3": 0.0}
    space = search_space("thumbnail_resnet", (3, 16, 16), CHOICES, fixed=fixed)
    assert [site.name for site in space.searchable] == ["stem"]
    assert space.site["layer2.0.conv1"].choices == (28 / 32,)  # 0.9 · 32 rounded down
    assert space.site["layer3"].choices == (0.0,)
    assert space.site["layer3.0.conv1"].choices == (0.5,)


@pytest.mark.parametrize(
    ("multiple", "expected"),
    [
        (1, (0.0, 0.125, 0.25, 0.5)),
        (4, (0.0, 0.25, 0.5)),
        (16, (0.0,)),
        (7, (0.0, 7 / 16)),
    ],
)
def test_choices_that_coincide_after_rounding_are_merged(
    multiple: int, expected: tuple[float, ...]
) -> None:
    space = search_space(
        "thumbnail_resnet", (3, 16, 16), (0.5, 0, 0.125, 0.25, 0.5), channel_multiple=multiple
    )
    assert space.site["layer1"].choices == expected
    assert space.site["layer1"].channels == 16


def test_a_stage_that_meets_the_stem_by_identity_depends_on_it() -> None:
    space = search_space("resnet18", (3, 64, 64), CHOICES, fixed={})
    zero = dict.fromkeys(space.site, 0.0)
    assert space.cost({**zero, "stem": 1.0}).macs < space.vanilla_macs
    first = next(conv for conv in space.convs if conv.name == "layer1.0.conv1")
    assert (first.site_in, first.site_out) == ("stem", "layer1.0.conv1")


@pytest.mark.parametrize(
    ("name", "args", "module"),
    [
        ("resnet50_gn", {}, "bn1: found a GroupNorm"),
        ("resnet50", {"block_args": {"attn_layer": "cbam"}}, "layer1.0.se: found a CbamModule"),
        ("skresnet18", {}, "SelectiveKernelBasic"),
        ("resnet50", {"global_pool": ""}, "global_pool"),
        ("vit_tiny_patch16_224", {}, "VisionTransformer"),
    ],
)
def test_what_cannot_be_octavized_cannot_be_searched(
    name: str, args: dict[str, Any], module: str
) -> None:
    for ask in (search_space, cost_of):
        with pytest.raises(UnsupportedModelError, match=module):
            ask(name, (3, 224, 224), (0.0, 0.5), backbone_args=args)


def cost_of(name: str, size: tuple[int, int, int], _: object, **kwargs: Any) -> object:
    return octnas.cost(name, input_size=size, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"backbone": "resnet5O"}, SettingError, "backbone: found 'resnet5O'"),
        ({"backbone": "thumbnail"}, SettingError, "near: thumbnail_resnet"),
        ({"backbone_args": {"wings": 2}}, SettingError, "wings"),
        ({"backbone_args": {"layers": [1, 1]}}, SettingError, "layers"),
        ({"backbone_args": {"layers": [1], "channels": [8]}}, SettingError, "layers"),
        (
            {"backbone": "resnet18", "backbone_args": {"layers": [1, 1]}},
            SettingError,
            "^backbone_args: found .*, allowed: arguments of resnet18 .* no attribute 'layer3'",
        ),
        ({"fixed": {"layer7": 0.0}}, ArchitectureError, "'layer7' matches no site"),
        ({"fixed": {"stem": 2.0}}, ArchitectureError, "found 2.0"),
        ({"alphas": (0.0, 1.5)}, SettingError, "alphas"),
        ({"alphas": (-0.5, 0.5)}, SettingError, "alphas"),
        ({"alphas": (float("nan"),)}, SettingError, "alphas"),
        ({"alphas": ()}, SettingError, "alphas"),
        ({"channel_multiple": 0}, SettingError, "channel_multiple"),
        ({"channel_multiple": 1.5}, SettingError, "channel_multiple"),
        ({"stride_mode": "fast"}, SettingError, "stride_mode"),
        ({"backbone_args": {"in_chans": 1}}, UnsupportedModelError, r"\(3, 16, 16\)"),
    ],
    ids=str,
)
def test_mistakes_are_named(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {
        "backbone": "thumbnail_resnet",
        "input_size": (3, 16, 16),
        "alphas": CHOICES,
        **kwargs,
    }
    with pytest.raises(error, match=message) as caught:
        search_space(**given)
    assert "\n" not in str(caught.value)


def test_the_former_name_of_alphas_is_accepted() -> None:
    with pytest.warns(SettingWarning, match="choices is now called alphas"):
        space = search_space("thumbnail_resnet", (3, 16, 16), choices=CHOICES)
    assert space == search_space("thumbnail_resnet", (3, 16, 16), CHOICES)


def test_looking_at_a_model_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    search_space("thumbnail_resnet", (3, 16, 16), CHOICES)
    assert torch.equal(torch.get_rng_state(), before)


def test_search_space_belongs_to_the_model_that_is_built() -> None:
    """Names, channels and sharing of α, read off the octave model itself."""
    space = space_of("thumbnail, odd", channel_multiple=2)
    architecture = random_architecture(space, seed=3)
    model = build(architecture, seed=0)
    for conv in space.convs:
        module = model.get_submodule(conv.name)
        assert isinstance(module, OctaveConv2d)
        assert module.site == conv.site_out
        share = module.low_channels / module.out_channels
        assert share == architecture.alphas[conv.site_out]
    assert replace(architecture, alphas={}).alphas == {}
    assert timm.is_model(space.backbone)
