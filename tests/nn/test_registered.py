"""Octave networks by name: `timm.create_model("oct_…")` and all that timm does with a model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from octnas import Architecture, OctaveConv2d, octavize
from octnas.errors import ArchitectureError, SettingError, UnsupportedModelError
from octnas.nn.models import BACKBONES, OctaveFeatures
from octnas.nn.octave import resplit
from tests.nn.families import SMALL
from tests.nn.reference import assert_sizeable, images, randomise

HEADLINE = "oct_seresnet152c"
NAMES = [*(f"oct_{name}" for name in BACKBONES), HEADLINE]
# Few channels and blocks; what a name stands for besides stays as it is.
TINY = {**SMALL, "channels": (8, 16, 16, 24)}


def kwargs_of(name: str, **kwargs: Any) -> dict[str, Any]:
    grouped = {"cardinality": 4, "base_width": 32} if "next" in name else {}
    return {**TINY, **grouped, **kwargs}


def create(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, **kwargs_of(name, **kwargs)))


def quantized(model: nn.Module) -> dict[str, float]:
    convs = [module for module in model.modules() if isinstance(module, OctaveConv2d)]
    return {conv.site: conv.low_channels / conv.out_channels for conv in convs}


@pytest.mark.parametrize("name", NAMES)
def test_all_names_make_octave_networks(name: str) -> None:
    assert timm.is_model(name)
    model = create(name, alphas=0.5).eval()
    alphas = quantized(model)
    assert set(alphas.values()) == {0.0, 0.5}
    assert {s for s, a in alphas.items() if a == 0} == {
        s for s in alphas if s.startswith(("stem", "layer4"))
    }
    x = images(2, 3, 64, 64)
    logits = model(x)
    assert_sizeable(logits)
    assert logits.shape == (2, 5)
    if name != HEADLINE:
        twin = octavize(create(name.removeprefix("oct_")), 0.5).eval()
        assert list(model.state_dict()) == list(twin.state_dict())
        assert torch.equal(logits, twin(x))


def test_timm_lists_them() -> None:
    assert set(NAMES) <= set(timm.list_models("oct_*"))
    assert len(set(BACKBONES)) == len(BACKBONES)
    assert all(timm.is_model(name) for name in BACKBONES)


@pytest.mark.parametrize("name", ["oct_resnet50", HEADLINE, "thumbnail_resnet", "resnet50"])
def test_they_are_built_where_torch_is_told_to(name: str) -> None:
    kwargs = {"layers": (1, 1, 1)} if name == "thumbnail_resnet" else kwargs_of(name)
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", BACKBONES)
def test_their_pretrained_weights_are_timms(name: str) -> None:
    kwargs = {key: value for key, value in kwargs_of(name).items() if key != "num_classes"}
    with torch.device("meta"):
        models = [timm.create_model(n, **kwargs) for n in (f"oct_{name}", name)]
    found, wanted = (model.pretrained_cfg for model in models)
    assert found == wanted
    assert [model.num_classes for model in models] == [1000, 1000]


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        (None, {"layer1": 0.125, "layer4": 0.0, "stem": 0.0}),
        (0.25, {"layer1": 0.25, "layer3": 0.25, "layer4": 0.0}),
        ({"layer2*": 0.5, "layer4": 1}, {"layer2": 0.5, "layer4": 1.0, "layer1": 0.0}),
        (Architecture("resnet50", (3, 64, 64), {"layer3": 0.75}), {"layer3": 0.75, "layer1": 0}),
    ],
    ids=["default", "number", "mapping", "architecture"],
)
def test_alphas_are_those_of_octavize(alphas: Any, expected: dict[str, float]) -> None:
    given = {} if alphas is None else {"alphas": alphas}
    with torch.device("meta"):
        found = quantized(timm.create_model("oct_resnet50", **given))
    assert {site: found[site] for site in expected} == expected


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"alphas": 1.5}, ArchitectureError, "1.5"),
        ({"alphas": {"layer9": 0.5}}, ArchitectureError, "layer9"),
        ({"channel_multiple": 0}, SettingError, "channel_multiple"),
        ({"channel_multiple": 1.5}, SettingError, "channel_multiple"),
        ({"stride_mode": "fast"}, SettingError, "stride_mode"),
        ({"wings": 2}, SettingError, "wings"),
    ],
)
def test_mistakes_are_named(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create("oct_resnet18", **kwargs)


def test_rounding_and_strides_reach_every_convolution() -> None:
    model = create("oct_resnet50", alphas=0.5, channel_multiple=16, stride_mode="paper")
    convs = [module for module in model.modules() if isinstance(module, OctaveConv2d)]
    assert {conv.stride_mode for conv in convs} == {"paper"}
    assert all(conv.low_channels % 16 == 0 for conv in convs)
    default = create("oct_resnet50", alphas=0.5)
    assert {m.stride_mode for m in default.modules() if isinstance(m, OctaveConv2d)} == {"timm"}


@pytest.mark.parametrize("alphas", [{"*": 0.5}, {"layer2": 1.0, "stem*": 0.25}, 0.0], ids=str)
@pytest.mark.parametrize("name", ["oct_resnet50", "oct_resnext50_32x4d", "oct_ecaresnet50d"])
def test_features_are_plain_tensors(name: str, alphas: Any) -> None:
    model = create(name, alphas=alphas).eval()
    net = create(name, alphas=alphas, features_only=True).eval()
    missing, _ = net.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    x = images(2, 3, 65, 75)
    _, expected = model.forward_intermediates(x)
    found = net(x)
    assert [info["reduction"] for info in net.feature_info.get_dicts()] == [2, 4, 8, 16, 32]
    assert [f.shape[1] for f in found] == net.feature_info.channels()
    for feature, wanted, reduction in zip(found, expected, (2, 4, 8, 16, 32), strict=True):
        assert isinstance(feature, Tensor)
        assert feature.shape[2:] == (-(-65 // reduction), -(-75 // reduction))
        assert_sizeable(feature)
        assert torch.equal(feature, resplit(wanted, 0))


def test_features_may_be_chosen() -> None:
    net = create("oct_seresnet50", alphas=0.5, features_only=True, out_indices=(1, 3)).eval()
    assert [tuple(f.shape) for f in net(images(1, 3, 64, 64))] == [(1, 32, 16, 16), (1, 64, 4, 4)]


@pytest.mark.parametrize("kind", ["list", OctaveFeatures])
def test_features_come_as_a_list(kind: Any) -> None:
    net = create("oct_resnet50", alphas=0.5, features_only=True, feature_cls=kind).eval()
    assert all(isinstance(f, Tensor) for f in net(images(1, 3, 32, 32)))


@pytest.mark.parametrize("kind", ["getter", "hook", "fx", "dict", "nonsense", FeatureListNet])
@pytest.mark.parametrize("name", ["oct_resnet18", HEADLINE])
def test_other_kinds_of_features_are_refused(name: str, kind: Any) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"feature_cls: found .*allowed: 'list'"
    ) as caught:
        timm.create_model(name, **kwargs_of(name, features_only=True, feature_cls=kind))
    assert "\n" not in str(caught.value)


def test_features_learn() -> None:
    net = create("oct_seresnet50", alphas={"*": 0.5}, features_only=True).train()
    sum(f.square().mean() for f in net(images(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["oct_resnet50", "oct_resnet50d", HEADLINE])
@pytest.mark.parametrize(("classes", "channels"), [(7, 1), (0, 3), (3, 4)])
def test_classes_and_input_channels(name: str, classes: int, channels: int) -> None:
    model = create(name, num_classes=classes, in_chans=channels).eval()
    assert model(images(2, channels, 64, 64)).shape == (2, classes or 96)
    assert model.num_classes == classes


@pytest.mark.parametrize(
    ("name", "tag"), [("resnet50", "a1_in1k"), ("resnet18", "tv_in1k"), ("seresnet50", "ra2_in1k")]
)
def test_tags_name_timms_weights(name: str, tag: str) -> None:
    found = create(f"oct_{name}.{tag}", alphas=0.25).pretrained_cfg
    wanted = timm.get_pretrained_cfg(f"{name}.{tag}").to_dict()
    assert {key: found[key] for key in wanted} == wanted
    assert (found["tag"], found["architecture"]) == (tag, name)


@pytest.mark.parametrize("name", ["oct_resnet50", HEADLINE])
def test_unknown_tags_are_refused_as_timm_does(name: str) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        create(f"{name}.nowhere")


@pytest.mark.parametrize(
    "form", [dict, lambda **entries: timm.models.PretrainedCfg(**entries)], ids=["dict", "value"]
)
@pytest.mark.parametrize("name", ["oct_seresnet50", HEADLINE])
def test_a_pretrained_cfg_may_be_given(name: str, form: Any) -> None:
    cfg = form(num_classes=7, classifier="fc", first_conv="conv1", input_size=(3, 64, 64))
    kwargs = {k: v for k, v in kwargs_of(name).items() if k != "num_classes"}
    model = timm.create_model(name, pretrained_cfg=cfg, **kwargs)
    assert model.num_classes == 7
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)


@pytest.mark.parametrize("alphas", [0.0, 0.5, {"*": 1.0}], ids=str)
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "ecaresnet50d", "seresnet18"])
def test_a_file_of_timm_weights_loads_at_any_alpha(name: str, alphas: Any, tmp_path: Path) -> None:
    source, path = create(name), tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 5}
    torch.manual_seed(1)
    kwargs = kwargs_of(name, pretrained=True, pretrained_cfg_overlay=overlay)
    model = timm.create_model(f"oct_{name}", alphas=alphas, **kwargs).eval()
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    x = images(2, 3, 64, 64)
    expected = octavize(copy.deepcopy(source), alphas).eval()(x)
    assert_sizeable(expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", ["oct_resnet50", "oct_resnet50d"])
def test_pretrained_weights_fit_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    """timm leaves the classifier out, and sums the first convolution over the colours."""
    source, path = create(name, alphas=0.5), tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 5}
    model = create(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1)
    first = "conv1.weight" if name == "oct_resnet50" else "conv1.0.weight"
    state, wanted = model.state_dict(), source.state_dict()
    assert_sizeable(state[first])
    torch.testing.assert_close(state[first], wanted[first].sum(1, keepdim=True))
    assert state["fc.weight"].shape == (3, 96)
    assert torch.equal(state["layer4.0.conv3.weight"], wanted["layer4.0.conv3.weight"])


def test_a_checkpoint_of_its_own_loads(tmp_path: Path) -> None:
    model, path = create("oct_seresnext50_32x4d", alphas=0.5).eval(), tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    torch.manual_seed(1)
    kwargs = kwargs_of("oct_seresnext50_32x4d", checkpoint_path=str(path), alphas=0.5)
    other = timm.create_model("oct_seresnext50_32x4d", **kwargs).eval()
    x = images(2, 3, 64, 64)
    assert_sizeable(model(x))
    assert torch.equal(other(x), model(x))


def test_the_headline_network_is_what_it_says() -> None:
    with torch.device("meta"):
        model = timm.create_model(HEADLINE)
    assert [len(getattr(model, f"layer{i}")) for i in range(1, 5)] == [3, 8, 36, 3]
    assert [conv.out_channels for conv in model.conv1 if isinstance(conv, nn.Conv2d)] == [
        *(32, 32, 64)
    ]
    assert model.layer1[0].se is not None
    convs = [module for module in model.modules() if isinstance(module, OctaveConv2d)]
    assert {conv.stride_mode for conv in convs} == {"paper"}
    assert quantized(model)["layer2"] == 0.125
    assert model.pretrained_cfg["first_conv"] == "conv1.0"
    assert model.pretrained_cfg["test_input_size"] == (3, 320, 320)
