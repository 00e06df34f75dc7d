"""Sorted channels compute the same, and those that matter least at half resolution go low."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BlurPool2d, SEModule
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from octnas import octavize
from octnas.errors import ArchitectureError, DataError, SettingError, UnsupportedModelError
from octnas.nn.channel_order import (
    channel_orders,
    kept_sites,
    sensitivity,
    sort_channels,
    tied_sites,
)
from octnas.nn.octavize import conv_sites
from tests.nn.families import FAMILIES, create, site_names, size_of
from tests.nn.reference import assert_sizeable, images, pool, upsample

DOUBLE = torch.float64


def shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Channels and groups by site."""
    convs = conv_sites(model)
    return {
        c.site_out: (model.get_submodule(c.name).weight.shape[0], c.split_groups) for c in convs
    }


def reversing(model: nn.Module) -> dict[str, Tensor]:
    """Sensitivities that reverse the channels of every group."""
    return {site: torch.arange(float(count)) for site, (count, _) in shapes(model).items()}


def random_sensitivities(model: nn.Module) -> dict[str, Tensor]:
    return {
        site: images(count, seed=seed).abs()
        for seed, (site, (count, _)) in enumerate(shapes(model).items())
    }


def check_function(model: nn.Module, size: tuple[int, int], values: dict[str, Tensor]) -> None:
    """Sorting moves channels, and changes neither logits nor keys nor parameters' identity."""
    model.double().eval()
    x = images(2, 3, *size, dtype=DOUBLE)
    parameters = list(model.parameters())
    with torch.no_grad():
        expected = model(x)
        before = copy.deepcopy(model.state_dict())
        orders = sort_channels(model, values)
        assert_sizeable(expected)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    kept = kept_sites(model)
    for site, (count, groups) in shapes(model).items():
        assert sorted(orders[site].tolist()) == list(range(count))
        stays = site in kept or groups == count
        assert torch.equal(orders[site], torch.arange(count)) == stays, site
    after = model.state_dict()
    assert [(key, value.shape) for key, value in after.items()] == [
        (key, value.shape) for key, value in before.items()
    ]
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_the_same(name: str) -> None:
    model = create(name)
    check_function(model, size_of(name), reversing(model))
    assert bool(kept_sites(model)) == name.startswith("ECA")


@pytest.mark.parametrize("name", ["ResNeXt", "SE-ResNeXt-T", "depthwise", "catavgmax"])
def test_any_order_computes_the_same(name: str) -> None:
    model = create("SiLU" if name == "catavgmax" else name)
    check_function(model, (37, 43), random_sensitivities(model))


def test_biases_and_norms_without_values() -> None:
    """What timm's own networks do not have, but may be given."""
    model = create("SE, basic")
    for conv in conv_sites(model):
        module = model.get_submodule(conv.name)
        module.bias = nn.Parameter(images(module.weight.shape[0]))
    model.bn1 = nn.BatchNorm2d(64, affine=False)
    model.layer1[0].bn1 = nn.BatchNorm2d(8, track_running_stats=False)
    check_function(model, (37, 43), reversing(model))


def test_a_replaced_classifier_is_taken() -> None:
    model = create("basic")
    model.fc = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 3))
    second = model.fc[1].weight.clone()
    check_function(model, (37, 43), reversing(model))
    assert torch.equal(model.fc[1].weight, second)


def test_attention_added_later_is_taken() -> None:
    """Then it is registered behind the shortcut, whose convolution has the same site."""
    model = create("bottleneck")
    model.layer2[0].se = SEModule(48)
    assert [*dict(model.layer2[0].named_children())][-2:] == ["downsample", "se"]
    check_function(model, (37, 43), reversing(model))


def test_sorted_is_octavized_alike_at_any_alpha() -> None:
    """An octave network treats channels of one resolution alike, in whatever order they are."""
    model = create("D").double().eval()
    octave = octavize(copy.deepcopy(model), {"*": 1.0})
    sort_channels(model, reversing(model))
    x = images(2, 3, 37, 43, dtype=DOUBLE)
    with torch.no_grad():
        expected = octave(x)
        assert_sizeable(expected)
        found = octavize(model, {"*": 1.0})(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_filters_are_equal_for_all_channels() -> None:
    """So that those of blurring layers need no order."""
    for name in ("anti-aliased", "blurred", "blurred, basic"):
        blurs = [m for m in create(name).modules() if isinstance(m, BlurPool2d)]
        assert bool(blurs) == name.startswith("blurred")
        assert all(torch.equal(m.filt, m.filt[:1].expand_as(m.filt)) for m in blurs)


def test_ties() -> None:
    basic, projected = create("basic"), create("D")
    assert tied_sites(basic) == {**{site: site for site in site_names(basic)}, "layer1": "stem"}
    assert tied_sites(projected) == {site: site for site in site_names(projected)}
    values = {"stem": torch.zeros(64), "layer1": torch.zeros(64), "layer2": torch.zeros(12)}
    values["stem"][[5, 9]] = torch.tensor([3.0, 2.0])
    values["layer1"][[9, 7]] = torch.tensor([2.0, 1.0])
    orders = channel_orders(basic, values)
    assert torch.equal(orders["stem"], orders["layer1"])
    assert orders["stem"][:5].tolist() == [9, 5, 7, 0, 1]
    assert orders["layer2"].tolist() == list(range(12))
    assert orders["layer3"].tolist() == list(range(16))


def test_stages_may_be_tied_in_a_chain() -> None:
    model = timm.create_model(
        "resnet18", channels=(64, 64, 8, 8), output_stride=8, num_classes=2, layers=(1, 1, 1, 1)
    )
    assert [s for s, first in tied_sites(model).items() if s != first] == ["layer1", "layer4"]
    model.layer2[0].downsample, model.layer2[0].conv1.stride = None, (1, 1)
    tied = {site for site, first in tied_sites(model).items() if first == "stem"}
    assert tied == {"stem", "layer1", "layer2"}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    check_function(model, (37, 43), reversing(model))


def test_channels_stay_in_their_group() -> None:
    model = create("ResNeXt")
    orders = channel_orders(model, random_sensitivities(model))
    grouped = {site: groups for site, (_, groups) in shapes(model).items() if groups > 1}
    assert set(grouped.values()) == {4}
    assert "layer2.0.conv2" in grouped
    for site, groups in grouped.items():
        blocks = orders[site].view(groups, -1)
        size = blocks.shape[1]
        for index, block in enumerate(blocks):
            assert sorted(block.tolist()) == list(range(index * size, (index + 1) * size))


@pytest.mark.parametrize("name", ["ECA", "ECA, MLP"])
def test_sites_of_neighbouring_attention_are_kept(name: str) -> None:
    model = create(name)
    streams = {f"layer{i}": f"layer{i}.0.se mixes neighbouring channels" for i in range(1, 5)}
    assert kept_sites(model) == streams
    # Tied to the stem, that is kept as well.
    model.layer1[0].downsample = None
    assert set(kept_sites(model)) == {*streams, tied_sites(model)["layer1"]}


def test_a_network_without_classifier_keeps_what_it_returns() -> None:
    model = create("basic", num_classes=0)
    assert kept_sites(model) == {"layer4": "the network returns these channels"}
    check_function(model, (37, 43), reversing(model))


def test_equal_sensitivities_keep_their_order() -> None:
    values = torch.tensor([1.0, 2.0, 1.0, 3.0, 2.0, 1.0, 1.0, 0.0])
    orders = channel_orders(create("bottleneck"), {"layer1.0.conv1": values})
    assert orders["layer1.0.conv1"].tolist() == [3, 1, 4, 0, 2, 5, 6, 7]


def two_stages(width: int = 4) -> ResNet:
    """Small, with a stem whose channels take turns between coarse and fine patterns."""
    torch.manual_seed(0)
    model = timm.create_model(
        "thumbnail_resnet", layers=(1, 1), channels=(width, width), num_classes=3
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    with torch.no_grad():
        coarse = torch.full((3, 3), 1 / 9)
        signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
        for channel, kernel in enumerate(model.conv1.weight):
            kernel.copy_((coarse, signs / 9)[channel % 2])
    assert isinstance(model, ResNet)
    return model


def patterns(count: int) -> Tensor:
    """Images of a random smooth part and a random share of a checkerboard."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    smooth = F.interpolate(images(count, 3, 2, 2), (16, 16), mode="bilinear")
    return smooth + images(count, 1, 1, 1, seed=1) * board


LABELS = torch.arange(8) % 3


@pytest.mark.parametrize("criterion", ["energy", "taylor"])
def test_checkerboards_are_more_sensitive_than_smooth_maps(criterion: Any) -> None:
    model = two_stages()
    found = sensitivity(model, [(patterns(8), LABELS)], criterion)
    fine, coarse = found["stem"][1::2], found["stem"][::2]
    assert fine.min() > 3 * coarse.max()
    order = channel_orders(model, {"stem": found["stem"]})["stem"]
    assert {int(channel) % 2 for channel in order[:2]} == {1}
    assert {int(channel) % 2 for channel in order[2:]} == {0}


@pytest.mark.parametrize("criterion", ["energy", "taylor"])
def test_sorted_loses_less_than_reversed(criterion: Any) -> None:
    model, x = two_stages(width=8).eval(), patterns(8)
    values = sensitivity(model, [(x, LABELS)], criterion)
    errors = []
    with torch.no_grad():
        expected = model(x)
        for sign in (1, -1):
            ordered = copy.deepcopy(model)
            sort_channels(ordered, {site: sign * value for site, value in values.items()})
            found = octavize(ordered, {"stem": 0.5, "layer1*": 0.5})(x)
            errors.append((found - expected).square().mean())
    assert_sizeable(expected)
    assert errors[0] < 0.7 * errors[1]


def inputs_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every convolution takes."""
    seen: dict[str, Tensor] = {}
    handles = []
    for conv in conv_sites(model):

        def note(_: nn.Module, args: tuple[Tensor], name: str = conv.name) -> None:
            seen[name] = args[0].clone()

        handles.append(model.get_submodule(conv.name).register_forward_pre_hook(note))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def detail(x: Tensor) -> Tensor:
    return x - upsample(pool(x), (x.shape[-2], x.shape[-1]))


@pytest.mark.parametrize("name", ["thumbnail", "ResNeXt", "depthwise"])
def test_energy_is_what_it_says(name: str) -> None:
    """Mean square of the detail, times the squares of the weights that it meets, one by one."""
    model, x = create(name).eval(), images(3, 3, 43, 37)
    found = sensitivity(model, [x[:1], x[1:]])
    expected = {site: torch.zeros(count) for site, (count, _) in shapes(model).items()}
    taken = inputs_of(model, x)
    for conv in conv_sites(model):
        module = model.get_submodule(conv.name)
        rows, columns = module.weight.shape[0] // module.groups, module.weight.shape[1]
        for channel in range(module.in_channels if conv.site_in else 0):
            group = channel // columns
            of_group = module.weight[group * rows : (group + 1) * rows, channel % columns]
            energy = detail(taken[conv.name])[:, channel].square().mean()
            expected[str(conv.site_in)][channel] += (energy * of_group.square().sum()).detach()
    assert set(found) == set(expected)
    for site, values in found.items():
        assert values.dtype == DOUBLE
        torch.testing.assert_close(values.float(), expected[site], rtol=1e-4, atol=1e-7)
    *_, last = found
    # Nothing but the classifier takes the last maps of a stage of one block.
    assert [site for site, values in found.items() if not values.any()] == [last]


def test_taylor_is_the_change_of_the_loss() -> None:
    """To first order, of smoothing one channel for one consumer and one image; others see it."""
    model = create("thumbnail").double().eval()
    x, labels, step = images(2, 3, 15, 13, dtype=DOUBLE), torch.tensor([3, 1]), 1e-6
    found = sensitivity(model, [(x, labels)], "taylor")
    consumers = [conv for conv in conv_sites(model) if conv.site_in == "stem"]
    assert [conv.name for conv in consumers] == ["layer1.0.conv1"]

    def losses(conv: nn.Module, channel: int, share: float) -> Tensor:
        def smooth(_: nn.Module, args: tuple[Tensor]) -> Tensor:
            changed = args[0].clone()
            changed[:, channel] -= share * detail(args[0])[:, channel]
            return changed

        handle = conv.register_forward_pre_hook(smooth)
        with torch.no_grad():
            each = F.cross_entropy(model(x), labels, reduction="none")
        handle.remove()
        return each

    for site in ("stem", "layer1"):
        for channel in (0, 5):
            slopes = [
                (losses(module, channel, step) - losses(module, channel, -step)) / (2 * step)
                for conv in conv_sites(model)
                if conv.site_in == site and (module := model.get_submodule(conv.name))
            ]
            expected = sum(slope.abs().mean() for slope in slopes)
            assert expected > 1e-5
            # The gradients are turned to single precision.
            torch.testing.assert_close(found[site][channel], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("criterion", ["energy", "taylor"])
def test_images_count_alike_in_any_batches(criterion: Any) -> None:
    model, x, labels = create("ResNeXt").double(), images(5, 3, 37, 43, dtype=DOUBLE), LABELS[:5]
    whole = sensitivity(model, [(x, labels)], criterion)
    parts = sensitivity(model, [(x[:1], labels[:1]), (x[1:], labels[1:])], criterion)
    for site, values in whole.items():
        torch.testing.assert_close(parts[site], values, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("criterion", ["energy", "taylor"])
def test_the_model_is_left_as_it_was(criterion: Any) -> None:
    """In eval mode meanwhile, whatever is frozen, under no_grad, with gradient checkpoints."""
    model = create("bottleneck").train()
    model.layer1.eval()
    model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    x, labels = images(4, 3, 37, 43), LABELS[:4]
    with torch.no_grad():
        found = sensitivity(model, [(x, labels)], criterion)
    model.set_grad_checkpointing()
    again = sensitivity(model.requires_grad_(True), [(x, labels)], criterion)
    assert all(torch.equal(found[site], again[site]) for site in found)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not x.requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())


def broken(key: str, value: float) -> Callable[[nn.Module], None]:
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.state_dict()[key].view(-1)[0] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "x", "message"),
    [
        (broken("fc.weight", float("nan")), 0.0, "the model: fc.weight: not"),
        (broken("layer1.0.conv1.weight", float("-inf")), 0.0, "layer1.0.conv1"),
        (broken("bn1.running_var", -1e4), 0.0, "outputs on the given images"),
        (lambda _: None, float("nan"), "outputs on the given images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("criterion", ["energy", "taylor"])
def test_values_that_are_not_finite_are_refused(
    criterion: Any, spoil: Callable[[nn.Module], None], x: float, message: str
) -> None:
    model = create("thumbnail").train()
    spoil(model)
    with pytest.raises(ArchitectureError, match=message):
        sensitivity(model, [(images(2, 3, 15, 13) + x, LABELS[:2])], criterion)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_arguments() -> None:
    model = create("thumbnail")
    with pytest.raises(SettingError, match="criterion: found 'loss', allowed: energy, taylor"):
        sensitivity(model, [], "loss")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="'taylor', allowed: energy, without labels"):
        sensitivity(model, [images(1, 3, 15, 13)], "taylor")
    with pytest.raises(DataError, match="found no images"):
        sensitivity(model, [])
    with pytest.raises(UnsupportedModelError, match=r"found a torch\.nn"):
        sensitivity(nn.Sequential(), [])
    with pytest.raises(UnsupportedModelError, match="octave convolution already"):
        sensitivity(octavize(copy.deepcopy(model), {}), [])


@pytest.mark.parametrize(
    ("sensitivities", "message"),
    [
        ({"layer9": torch.ones(8)}, "sensitivities: found 'layer9', allowed: stem, "),
        ({"stem": torch.ones(9)}, r"stem: \(9,\)', allowed: finite values of shape \(8,\)"),
        ({"stem": torch.tensor([1.0] * 7 + [float("nan")])}, "allowed: finite values"),
    ],
)
def test_sensitivities_that_do_not_fit_change_nothing(
    sensitivities: dict[str, Tensor], message: str
) -> None:
    model = create("thumbnail")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingError, match=message):
        sort_channels(model, {**reversing(model), **sensitivities})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_unsupported_models_are_refused_unchanged() -> None:
    model = create("thumbnail")
    model.layer3[0].bn2 = nn.GroupNorm(2, 16)
    assert isinstance(model.layer3[0].bn2, nn.GroupNorm)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=r"layer3\.0\.bn2: found a GroupNorm"):
        sort_channels(model, {"stem": torch.arange(8.0)})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
