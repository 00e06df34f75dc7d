"""Networks that Torch-Pruning has taken channels from."""

import copy
import warnings
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SEModule
from torch import nn

import octnas
from octnas.errors import ArchitectureError, SettingError
from octnas.nn import build
from octnas.nn.channel_order import take_channels
from octnas.nn.cost import cost
from octnas.nn.deploy import deploy
from octnas.nn.load import ARCHITECTURE_FILE, WEIGHTS_FILE, space_of
from octnas.nn.octavize import conv_sites
from octnas.nn.pruned import Pruned, pruned_network, ranked_channels
from octnas.space.architecture import Architecture
from octnas.space.budgets import costs_of
from tests.nn.families import FAMILIES, arguments, create, size_of
from tests.nn.reference import assert_sizeable, images

torch_pruning = pytest.importorskip("torch_pruning")

QUICK = ("thumbnail", "SE-ResNeXt-T")


def whole(name: str, folder: Path) -> tuple[Architecture, Path]:
    """A network of a family, and its weights."""
    backbone, args = arguments(name)
    save_file(create(name).state_dict(), folder / "whole.safetensors")
    return Architecture(backbone, (3, *size_of(name)), {}, args), folder / "whole.safetensors"


def pruned(name: str, folder: Path, share: float = 0.5, **kwargs: Any) -> tuple[int, Pruned]:
    """The cost asked for, a share of the network's MACs, and the pruned network."""
    architecture, weights = whole(name, folder)
    at_least = round(share * cost(architecture).macs)
    found = pruned_network(architecture, weights, {"macs": at_least}, **kwargs)
    assert found is not None
    return at_least, found


@pytest.mark.parametrize(
    "name",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES],
)
def test_the_same_network_is_built_from_its_widths(name: str, tmp_path: Path) -> None:
    at_least, found = pruned(name, tmp_path)
    assert at_least <= cost(found.architecture).macs < cost(whole(name, tmp_path)[0]).macs
    x = images(2, *found.architecture.input_size)
    expected = found.model.eval()(x).detach()
    assert_sizeable(expected)
    found.architecture.save(tmp_path / ARCHITECTURE_FILE)
    save_file(found.model.state_dict(), tmp_path / WEIGHTS_FILE)
    loaded = octnas.load(tmp_path)
    assert sum(p.numel() for p in loaded.parameters()) == cost(found.architecture).params
    scale = float(expected.abs().max())
    assert torch.allclose(loaded(x), expected, atol=1e-5 * scale)
    assert torch.allclose(deploy(loaded)(x), expected, atol=1e-4 * scale)
    assert torch.isfinite(build(found.architecture, seed=0).train()(x)).all()


@pytest.mark.parametrize(
    "name",
    [
        "thumbnail",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bottleneck", "SE", "ESE", "SiLU")),
    ],
)
def test_it_is_what_torch_pruning_makes(name: str, tmp_path: Path) -> None:
    """Its own pruner, by the same share of every group: half, which needs no rounding."""
    architecture, weights = whole(name, tmp_path)
    model = create(name)
    take_channels(
        model, {k: v[:, : v.shape[1] // 2].flatten() for k, v in ranked_channels(model).items()}
    )
    widths = {
        conv.site_out: model.get_submodule(conv.name).out_channels for conv in conv_sites(model)
    }
    args = {**architecture.backbone_args, "backbone": architecture.backbone, "widths": widths}
    half = Architecture("pruned_resnet", architecture.input_size, {}, args)
    found = pruned_network(architecture, weights, {"macs": cost(half).macs})
    assert found is not None
    assert found.architecture == half
    assert found.share <= 0.5
    model = create(name).eval()
    kept = [m for m in model.modules() if isinstance(m, nn.Linear)]
    kept += [m.fc1 for m in model.modules() if isinstance(m, SEModule)]
    x = images(2, *found.architecture.input_size)
    before = model(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            model,
            (x,),
            torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=kept,
            in_channel_groups={},
            out_channel_groups={},
        ).step()
    expected = model(x).detach()
    assert_sizeable(expected)
    assert not torch.allclose(expected, before, atol=0.1 * float(before.abs().max()))
    assert torch.allclose(found.model.eval()(x), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("share", [0.3, pytest.param(0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["macs", "activation", "peak"])
def test_the_next_smaller_share_would_not_be_enough(by: str, share: float, tmp_path: Path) -> None:
    architecture, weights = whole("thumbnail", tmp_path)
    at_least = round(share * cost_by(by, architecture))
    found = pruned_network(architecture, weights, {"macs": 10**12, by: at_least})
    assert found is not None
    assert cost_by(by, found.architecture) >= at_least
    full = {site: order.numel() for site, order in ranked_channels(create("thumbnail")).items()}
    widths = found.architecture.backbone_args["widths"]
    assert widths == {site: ceil(count * found.share) for site, count in full.items()}
    less = {site: ceil(count * (found.share - 1 / 2048)) for site, count in full.items()}
    assert less != widths
    args = {**found.architecture.backbone_args, "widths": less}
    below = Architecture("pruned_resnet", architecture.input_size, {}, args)
    assert cost_by(by, below) < at_least


def cost_by(name: str, architecture: Architecture) -> int:
    return costs_of(space_of(architecture))[name].vanilla


def test_the_same_weights_give_the_same_network(tmp_path: Path) -> None:
    (_, one), (_, other) = pruned("thumbnail", tmp_path), pruned("thumbnail", tmp_path)
    assert one.architecture.id == other.architecture.id
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())


def test_channels_are_a_multiple_but_never_none(tmp_path: Path) -> None:
    at_least, found = pruned("basic", tmp_path, 0.3, multiple=8)
    widths = found.architecture.backbone_args["widths"]
    assert cost(found.architecture).macs >= at_least
    # Stage 2 has 12 channels, and stage 4 has 24.
    assert {width % 8 for site, width in widths.items()} == {0}
    assert widths["layer2"] == 8 == min(widths.values())


def test_where_nothing_can_be_removed(tmp_path: Path) -> None:
    architecture, weights = whole("thumbnail", tmp_path)
    macs = cost(architecture).macs
    assert pruned_network(architecture, weights, {"macs": macs}) is None
    assert pruned_network(architecture, weights, {"macs": macs // 2}, multiple=16) is None


def test_it_can_be_pruned_again(tmp_path: Path) -> None:
    _, found = pruned("thumbnail", tmp_path)
    save_file(found.model.state_dict(), tmp_path / "pruned.safetensors")
    at_least = cost(found.architecture).macs // 2
    again = pruned_network(found.architecture, tmp_path / "pruned.safetensors", {"macs": at_least})
    assert again is not None
    assert again.architecture.backbone_args["backbone"] == "thumbnail_resnet"
    assert at_least <= cost(again.architecture).macs < 2 * at_least


def test_its_features_have_its_widths(tmp_path: Path) -> None:
    _, found = pruned("D", tmp_path)
    args = dict(found.architecture.backbone_args)
    model = timm.create_model("pruned_resnet", features_only=False, **args).eval()
    assert model.num_features == found.architecture.backbone_args["widths"]["layer4"]
    wrapped = timm.create_model(
        "octnas_network", architecture=found.architecture.to_dict(), features_only=True
    )
    x = images(1, *found.architecture.input_size)
    assert [map_.shape[1] for map_ in wrapped(x)] == wrapped.feature_info.channels()
    model.reset_classifier(3)
    assert model(x).shape == (1, 3)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"layer9": 3}, "widths: found 'layer9', allowed: stem, "),
        (
            {"layer2.0.conv1": 13},
            "widths.layer2.0.conv1: found 13, allowed: a multiple of 1 up to 12",
        ),
        ({"layer2.0.conv1": 0}, "widths.layer2.0.conv1: found 0"),
        ({"layer2.0.conv1": 2.0}, "widths.layer2.0.conv1: found 2.0"),
        ({"stem": 4, "layer1": 5}, "widths.layer1: found 5, allowed: 4, as for stem"),
    ],
)
def test_widths_that_it_cannot_have(widths: dict[str, Any], message: str, tmp_path: Path) -> None:
    backbone, args = arguments("thumbnail")
    args = {**args, "backbone": backbone, "widths": widths}
    with pytest.raises(SettingError) as caught:
        cost(Architecture("pruned_resnet", (3, 16, 16), {}, args))
    assert str(caught.value).startswith(message)
    Architecture("pruned_resnet", (3, 16, 16), {}, args).save(tmp_path / ARCHITECTURE_FILE)
    with pytest.raises(ArchitectureError) as refused:
        octnas.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_channels_are_taken_in_the_given_order() -> None:
    """All of a plain network's in another order is the same network."""
    model = create("ResNeXt").eval()
    ranked = ranked_channels(copy.deepcopy(model))
    x = images(2, 3, *size_of("ResNeXt"))
    expected = model(x).detach()
    take_channels(model, {site: order.flatten() for site, order in ranked.items()})
    assert_sizeable(expected)
    assert torch.allclose(model(x), expected, atol=1e-4 * float(expected.abs().max()))
