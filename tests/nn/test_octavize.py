from collections.abc import Mapping
from typing import Any

import pytest
import timm
from torch import nn

from octnas import Architecture, OctaveConv2d, octavize
from octnas.errors import ArchitectureError, SettingError
from octnas.nn.octavize import match_sites
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


def realised(model: nn.Module) -> dict[str, float]:
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
    assert realised(model) == expected
    alphas = realised(octavize(timm.create_model("resnet50"), 0.25))
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
    assert realised(octavize(thumbnail(), alphas)) == everywhere


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
    assert realised(model) == expected
    assert {m.stride_mode for m in model.modules() if isinstance(m, OctaveConv2d)} == {"paper"}


def test_the_model_is_changed_in_place() -> None:
    model = thumbnail()
    parameters = list(model.parameters())
    assert octavize(model, 0.5) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ({"layer9*": 0.5}, r"pattern 'layer9\*' names no site; sites: stem, "),
        ({"conv1": 0.5}, "pattern 'conv1' names no site"),
        ({"stem": 1.5}, "α for 'stem': found 1.5"),
        ({"stem": float("nan")}, "α for 'stem'"),
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
    alphas = realised(octavize(model, {"stem*": 0.5, "*.conv1": 1.0}))
    assert [alphas[site] for site in stem] == [0.5] * len(stem)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_papers_rule_in_every_family(name: str) -> None:
    """Stem and last stage at 0, the rest at α; grouped layers may round to less."""
    model = octavize(create(name), 0.5)
    last = "layer3" if name == "thumbnail" else "layer4"
    for site, alpha in realised(model).items():
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
