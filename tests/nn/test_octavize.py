"""What octave feature maps cannot pass through is refused by name, before anything is changed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropBlock2d, GatherExcite, SEModule, freeze_batch_norm_2d
from timm.models.resnet import ResNet
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from octnas import Architecture, OctaveConv2d, octavize
from octnas.errors import ArchitectureError, OctnasError, SettingError, UnsupportedModelError
from octnas.nn.octavize import match_sites
from octnas.nn.search_space import search_space
from tests.nn.families import FAMILIES, create, fingerprint, site_names

THUMBNAIL_SITES = [
    "stem",
    "layer1.0.conv1",
    "layer1",
    "layer2.0.conv1",
    "layer2",
    "layer3.0.conv1",
    "layer3",
]


def thumbnail() -> nn.Module:
    import octnas.nn  # noqa: F401  registers it

    return timm.create_model("thumbnail_resnet", num_classes=10)


def quantized(model: nn.Module) -> dict[str, float]:
    """Share of low channels by site, checked to be one for all convolutions of a site."""
    found: dict[str, set[float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".se." not in name:
            assert isinstance(module, OctaveConv2d)
            found.setdefault(module.site, set()).add(module.low_channels / module.out_channels)
    assert all(len(shares) == 1 for shares in found.values())
    return {site: shares.pop() for site, shares in found.items()}


def test_a_number_is_the_papers_rule() -> None:
    model = octavize(thumbnail(), 0.5)
    expected = dict.fromkeys(THUMBNAIL_SITES, 0.5)
    expected |= {"stem": 0.0, "layer3.0.conv1": 0.0, "layer3": 0.0}
    assert quantized(model) == expected
    alphas = quantized(octavize(timm.create_model("resnet50"), 0.25))
    zero = {site for site, alpha in alphas.items() if alpha == 0}
    assert zero == {"stem", "layer4", *(f"layer4.{i}.conv{j}" for i in range(3) for j in (1, 2))}
    assert {alpha for site, alpha in alphas.items() if site not in zero} == {0.25}
    assert len(alphas) - len(zero) == 29


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        ({}, {}),
        ({"layer2": 0.5}, {"layer2": 0.5}),
        ({"layer2*": 0.5}, {"layer2": 0.5, "layer2.0.conv1": 0.5}),
        ({"*": 0.25, "stem": 1}, {**dict.fromkeys(THUMBNAIL_SITES, 0.25), "stem": 1.0}),
        ({"stem": 1, "*": 0.25}, dict.fromkeys(THUMBNAIL_SITES, 0.25)),
        ({"*.conv1": 0.5, "layer[13]*": 0.75, "layer3": 0}, {
            "layer1.0.conv1": 0.75, "layer1": 0.75, "layer2.0.conv1": 0.5, "layer3.0.conv1": 0.75,
        }),
    ],
)  # fmt: skip
def test_a_mapping_means_exactly_its_patterns(
    alphas: Mapping[str, float], expected: Mapping[str, float]
) -> None:
    everywhere = {**dict.fromkeys(THUMBNAIL_SITES, 0.0), **expected}
    assert quantized(octavize(thumbnail(), alphas)) == everywhere


def test_an_architecture_brings_its_rules() -> None:
    architecture = Architecture(
        "thumbnail_resnet",
        (3, 16, 16),
        {"layer1": 0.3, "layer2": 0.5},
        channel_multiple=8,
        stride_mode="paper",
    )
    model = octavize(thumbnail(), architecture, channel_multiple=1, stride_mode="timm")
    expected = {**dict.fromkeys(THUMBNAIL_SITES, 0.0), "layer2": 0.5}  # 0.3 · 16 is less than 8
    assert quantized(model) == expected
    assert {m.stride_mode for m in model.modules() if isinstance(m, OctaveConv2d)} == {"paper"}


def test_the_model_is_changed_in_place() -> None:
    model = thumbnail()
    parameters = list(model.parameters())
    assert octavize(model, 0.5) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ({"layer9*": 0.5}, r"pattern 'layer9\*' matches no site; sites: stem, "),
        ({"conv1": 0.5}, "pattern 'conv1' matches no site"),
        ({"stem": 1.5}, "α of site 'stem': found 1.5"),
        ({"stem": float("nan")}, "α of site 'stem'"),
        (-0.5, "found -0.5, allowed: 0 to 1"),
        (1.01, "found 1.01"),
        (Architecture("x", (3, 8, 8), {"layer4": 0.5}), "unknown sites layer4; allowed: stem"),
    ],
)
def test_impossible_alphas_are_refused_before_any_change(alphas: Any, message: str) -> None:
    model = thumbnail()
    before = fingerprint(model)
    with pytest.raises(ArchitectureError, match=message):
        octavize(model, alphas)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"channel_multiple": 0},
        {"channel_multiple": 1.5},
        {"channel_multiple": float("nan")},
        {"channel_multiple": None},
        {"stride_mode": "fast"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_before_any_change(settings: dict[str, Any]) -> None:
    model = thumbnail()
    before = fingerprint(model)
    with pytest.raises(SettingError, match=next(iter(settings))):
        octavize(model, 0.5, **settings)
    assert fingerprint(model) == before


def test_a_later_pattern_wins() -> None:
    assert match_sites({"*": 0.1, "a*": 0.2, "ab": 0.3}, ["ab", "ac", "b"]) == {
        "ab": 0.3,
        "ac": 0.2,
        "b": 0.1,
    }


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("bottleneck", ["stem"]),
        ("D", ["stem.0", "stem.1", "stem.2"]),
        ("RS", ["stem.0", "stem.1", "stem.2", "stem.pool"]),
    ],
)
def test_stems_have_sites_of_their_own(name: str, stem: list[str]) -> None:
    model = create(name)
    assert [site for site in site_names(model) if site.startswith("stem")] == stem
    alphas = quantized(octavize(model, {"stem*": 0.5, "*.conv1": 1.0}))
    assert [alphas[site] for site in stem] == [0.5] * len(stem)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_papers_rule_in_every_family(name: str) -> None:
    """Stem and last stage at 0, the rest at α; grouped layers may round to less."""
    model = octavize(create(name), 0.5)
    last = "layer3" if name == "thumbnail" else "layer4"
    for site, alpha in quantized(model).items():
        assert alpha == (0.0 if site.startswith(("stem", last)) else 0.5), site


@pytest.mark.parametrize("name", ["ResNeXt", "depthwise", "SENet"])
def test_grouped_sites_round_inside_their_groups(name: str) -> None:
    model = octavize(create(name), {"*": 0.3})
    for module in model.modules():
        if isinstance(module, OctaveConv2d):
            per_group = module.out_channels // module.split_groups
            wanted = int(0.3 * per_group) * module.split_groups
            assert module.low_channels == wanted
            assert module.split_groups in (1, module.groups) or module.groups == 1


ATTENTION = ["gc", "gca", "cbam", "lcbam", "ceca", "coord", "nl"]


def check_refused(model: nn.Module, message: str) -> None:
    before = fingerprint(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError) as caught:
        octavize(model, 0.5)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fingerprint(model) == before
    for key, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mobilenetv3_small_050", {}, "MobileNetV3"),
        ("vit_tiny_patch16_224", {}, "VisionTransformer"),
        ("resnetv2_50", {}, "ResNetV2"),
        ("skresnet18", {}, "layer1.0: found a SelectiveKernelBasic"),
        ("res2net50_26w_4s", {}, "layer1.0: found a Bottle2neck"),
        ("resnest14d", {}, "layer1.0: found a ResNestBottleneck"),
        ("resnet50_gn", {}, "bn1: found a GroupNorm"),
        ("resnet18", {"norm_layer": "groupnorm"}, "bn1: found a GroupNorm"),
        ("resnet18", {"norm_layer": "layernorm2d"}, "bn1: found a LayerNorm2d"),
        ("resnet18", {"act_layer": "prelu"}, "act1: found a PReLU"),
        ("resnet18", {"act_layer": "elu"}, "act1: found a ELU"),
        ("resnet18", {"global_pool": ""}, "global_pool: found no global pooling"),
        *(
            ("resnet50", {"block_args": {"attn_layer": kind}}, "layer1.0.se: found a ")
            for kind in ATTENTION
        ),
    ],
)
def test_other_models_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        check_refused(timm.create_model(name, **kwargs), message)


def grouped_first(model: ResNet) -> None:
    model.layer1[0].conv1 = nn.Conv2d(64, 8, 1, groups=2, bias=False)


def grouped_last(model: ResNet) -> None:
    model.layer2[0].conv3 = nn.Conv2d(12, 48, 1, groups=4, bias=False)


def grouped_shortcut(model: ResNet) -> None:
    model.layer2[0].downsample[0] = nn.Conv2d(32, 48, 1, 2, groups=2, bias=False)


def grouped_stem(model: ResNet) -> None:
    model.conv1 = nn.Conv2d(3, 63, 7, 2, 3, groups=3, bias=False)


def depthwise_shortcut(model: ResNet) -> None:
    model.layer1[0].downsample[0] = nn.Conv2d(64, 64, 1, groups=64, bias=False)


def another_norm(model: ResNet) -> None:
    model.layer3[0].bn2 = nn.InstanceNorm2d(16)  # type: ignore[assignment]


def noise(model: ResNet) -> None:
    model.layer3[0].drop_block = DropBlock2d(0.1, 3, with_noise=True)


def alpha_dropout(model: ResNet) -> None:
    model.layer3[0].drop_block = nn.AlphaDropout(0.1)


def prelu(model: ResNet) -> None:
    model.layer4[0].act3 = nn.PReLU()


def gather_excite(model: ResNet) -> None:
    model.layer1[0].se = GatherExcite(32, use_mlp=False)


def own_attention(model: ResNet) -> None:
    class Own(SEModule):
        """Of which nothing is known."""

    model.layer1[0].se = Own(32)


def own_conv(model: ResNet) -> None:
    class Own(nn.Conv2d):
        """Of which nothing is known."""

    model.layer1[0].conv2 = Own(8, 8, 3, padding=1, bias=False)


def more_convs(model: ResNet) -> None:
    model.layer1[0].drop_block = nn.Conv2d(8, 8, 1)


def parametrised(model: ResNet) -> None:
    weight_norm(model.layer2[0].conv2)


def even_kernel(model: ResNet) -> None:
    model.layer2[0].conv2 = nn.Conv2d(12, 12, 2, 2, bias=False)


def asymmetric_stride(model: ResNet) -> None:
    model.layer2[0].conv2 = nn.Conv2d(12, 12, 3, (2, 1), 1, bias=False)


def mirrored(model: ResNet) -> None:
    model.layer4[0].conv2 = nn.Conv2d(24, 24, 3, 2, 1, bias=False, padding_mode="reflect")


CHANGES: dict[Callable[[ResNet], None], str] = {
    grouped_first: "layer1.0.conv1: found a convolution of 2 groups",
    grouped_last: "layer2.0.conv3: found a convolution of 4 groups",
    grouped_shortcut: "layer2.0.downsample.0: found a convolution of 2 groups",
    grouped_stem: "conv1: found a convolution of 3 groups",
    depthwise_shortcut: "layer1.0.downsample.0: found a convolution of 64 groups",
    another_norm: "layer3.0.bn2: found a InstanceNorm2d",
    noise: "layer3.0.drop_block: found DropBlock2d with noise",
    alpha_dropout: "layer3.0.drop_block: found a AlphaDropout",
    prelu: "layer4.0.act3: found a PReLU",
    gather_excite: "layer1.0.se: found a GatherExcite",
    own_attention: "layer1.0.se: found a Own",
    own_conv: "layer1.0.conv2: found a Own",
    more_convs: "layer1.0.drop_block: found a Conv2d that belongs to no site",
    parametrised: "layer2.0.conv2: found a ParametrizedConv2d",
    even_kernel: "layer2.0.conv2: found kernel (2, 2)",
    asymmetric_stride: "layer2.0.conv2: found stride (2, 1)",
    mirrored: "layer4.0.conv2: found stride (2, 2), padding mode 'reflect'",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_no_resnet_has_is_refused(change: Callable[[ResNet], None]) -> None:
    model = create("bottleneck")
    change(model)
    check_refused(model, CHANGES[change])


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, "bn1: found a SyncBatchNorm"),
        (freeze_batch_norm_2d, "bn1: found a FrozenBatchNorm2d"),
    ],
)
def test_other_batch_norms_are_refused(
    convert: Callable[[nn.Module], nn.Module], message: str
) -> None:
    check_refused(convert(create("bottleneck")), message)


def test_what_cannot_be_octavized_is_found_before_alphas_are_read() -> None:
    model = create("bottleneck")
    prelu(model)
    before = fingerprint(model)
    with pytest.raises(OctnasError):
        octavize(model, {"nowhere": 0.5})
    assert fingerprint(model) == before


def test_an_octave_network_is_refused() -> None:
    model = octavize(create("SE-ResNeXt-T"), 0.5)
    before = [module.low_channels for module in model.modules() if hasattr(module, "low_channels")]
    check_refused(model, "conv1.0: is an octave convolution already")
    after = [module.low_channels for module in model.modules() if hasattr(module, "low_channels")]
    assert before == after


@pytest.mark.parametrize("model", [nn.Linear(1, 1), nn.Sequential(nn.Conv2d(3, 8, 3))])
def test_what_is_no_timm_model_is_refused(model: nn.Module) -> None:
    with pytest.raises(OctnasError, match=type(model).__name__):
        octavize(model, 0.5)


@pytest.mark.parametrize("kind", ATTENTION[:3])
def test_a_search_refuses_the_same(kind: str) -> None:
    args = {"block_args": {"attn_layer": kind}}
    with pytest.raises(UnsupportedModelError, match=r"layer1\.0\.se"):
        search_space("resnet50", (3, 64, 64), (0.0, 0.5), backbone_args=args)
