"""Switchable batch norms and path scales: only in a supernet, folded in a subnet."""

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octnas
from octnas import OctaveConv2d, OctaveTensor
from octnas.nn import activate, build_supernet, subnet
from octnas.nn.layers import OctaveBatchNorm2d
from octnas.nn.octavize import octavize
from octnas.nn.search_space import search_space
from octnas.nn.supernet import (
    SwitchableBatchNorm2d,
    SwitchableBatchNormAct2d,
    fold_switchable,
    is_switchable,
    make_switchable,
    recalibrate,
)
from octnas.nn.weights import load_weights, save_weights
from tests.nn.convs import features, octave
from tests.nn.families import arguments, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images, octave_conv, places, randomise
from tests.nn.switchable import ALPHAS, randomise_switchable, switchable_supernet, uniform

VARIANTS = (
    "thumbnail",
    "basic",
    "basic, T",
    "bottleneck",
    "D",
    "ResNeXt",
    "depthwise",
    "SE",
    "SE-ResNeXt-T",
    "anti-aliased",
    "SiLU",
)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_subnet_is_the_supernet_bit_for_bit(name: str, training: bool) -> None:
    model = switchable_supernet(name)
    x = images(2, 3, *size_of(name, training=True))
    for seed in (0, 1, 2):
        alphas = random_alphas(model, seed)
        activate(model, alphas)
        network, whole = subnet(model, alphas), copy.deepcopy(model)
        assert not is_switchable(network)
        found, expected = network.train(training)(x), whole.train(training)(x)
        assert_sizeable(expected)
        assert torch.equal(found, expected)
        # And, in training, the statistics that both have gathered.
        network.eval()
        again, expected_again = network(x), fold_switchable(whole.eval())(x)
        assert torch.equal(again, expected_again)


@pytest.mark.parametrize("name", VARIANTS)
def test_adding_roles_changes_nothing_at_first(name: str) -> None:
    x = images(2, 3, *size_of(name, training=True))
    plain = octavize(create(name), 0.0)
    model = make_switchable(copy.deepcopy(plain))
    cases = [uniform(plain, alpha) for alpha in ALPHAS] + [random_alphas(plain, 3)]
    for alphas in cases:
        for training in (False, True):
            outputs = []
            for either in (plain, model):
                activate(either, alphas)
                outputs.append(copy.deepcopy(either).train(training)(x))
            assert_sizeable(outputs[0])
            assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["basic", "D", "ResNeXt", "depthwise", "SE"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_parameter_has_a_gradient_at_any_alpha(name: str, alpha: float) -> None:
    """So that no rank of a distributed training misses one."""
    model = switchable_supernet(name).train()
    activate(model, uniform(model, alpha))
    model(images(2, 3, *size_of(name, training=True))).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    used = {key: bool(grad.abs().sum() > 0) for key, grad in grads.items() if grad is not None}
    assert used["layer1.0.bn1.weight"] == (alpha < 1)
    assert used["layer1.0.bn1.low_weight"] == (alpha > 0)
    high_to_high, *_, low_to_low = (grads["layer1.0.conv2.path_scales"] != 0).tolist()  # type: ignore[union-attr]
    assert high_to_high == (alpha < 1)
    assert low_to_low == (alpha > 0)


@pytest.mark.parametrize("name", ["basic", "D", "ResNeXt", "SE"])
def test_a_subnet_has_timms_keys(name: str) -> None:
    model = switchable_supernet(name)
    backbone, kwargs = arguments(name)
    by_timm = timm.create_model(backbone, **kwargs)
    wanted = {key: value.shape for key, value in by_timm.state_dict().items()}
    network = subnet(model, random_alphas(model, 0))
    assert {key: value.shape for key, value in network.state_dict().items()} == wanted
    assert [key for key, _ in network.named_parameters()] == [
        key for key, _ in by_timm.named_parameters()
    ]
    assert len(model.state_dict()) > len(wanted)
    # At α = 0 it is timm's network.
    by_timm.load_state_dict(subnet(model, uniform(model, 0.0)).state_dict())
    x = images(2, 3, *size_of(name))
    activate(model, uniform(model, 0.0))
    assert torch.equal(by_timm.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", ["basic", "D", "ResNeXt", "depthwise", "SE", "anti-aliased"])
def test_a_deployed_supernet_computes_the_same(name: str) -> None:
    model = switchable_supernet(name).double().eval()
    x = images(2, 3, *size_of(name), dtype=torch.float64)
    for seed in (0, 1):
        activate(model, random_alphas(model, seed))
        with torch.no_grad():
            expected = model(x)
            assert_sizeable(expected)
            torch.testing.assert_close(octnas.deploy(model)(x), expected, rtol=1e-9, atol=1e-9)
    assert is_switchable(model)


def test_roles_and_scales_matter() -> None:
    model, x = switchable_supernet("ResNeXt").eval(), images(2, 3, *size_of("ResNeXt"))
    activate(model, uniform(model, 0.5))
    before = model(x)
    for kind in ("low_weight", "low_bias", "low_running_mean", "low_running_var", "path_scales"):
        other = copy.deepcopy(model)
        for key, value in other.state_dict().items():
            if key.endswith(f".{kind}"):
                value.mul_(1.5)
        assert_sizeable(other(x) - before)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("low", [2, 6, 8])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_each_channel_is_normalised_by_its_role(groups: int, low: int, training: bool) -> None:
    model = nn.Sequential(randomise(OctaveBatchNorm2d(8)))
    (norm,) = randomise_switchable(make_switchable(model)).double().train(training)
    assert isinstance(norm, SwitchableBatchNorm2d)
    x = features(8, low, (4, 6), groups)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    found = norm(octave(x))
    assert isinstance(found, OctaveTensor)
    names = ("running_mean", "running_var", "weight", "bias")
    for part, output, prefix, at in zip(
        (x.high, x.low), (found.high, found.low), ("", "low_"), places(8, low, groups), strict=True
    ):
        other = "" if prefix else "low_"
        mean, variance, weight, bias = (before[prefix + name][at] for name in names)
        if part.shape[1]:
            expected = F.batch_norm(part, mean, variance, weight, bias, training, 0.1)
            torch.testing.assert_close(output, expected)
        for name, now in (("running_mean", mean), ("running_var", variance)):
            torch.testing.assert_close(getattr(norm, prefix + name)[at], now)
            # The other role of the same channels stays as it was.
            assert torch.equal(getattr(norm, other + name)[at], before[other + name][at])
    assert norm.num_batches_tracked == before["num_batches_tracked"] + training


@pytest.mark.parametrize("groups", [1, 2])
def test_each_path_has_its_scale(groups: int) -> None:
    """The kernel's blocks, found without octnas's code, times one number each."""
    conv = OctaveConv2d(8, 12, 3, padding=1, groups=groups, alpha=0.5).double()
    make_switchable(nn.Sequential(conv))
    x = features(8, 4, (5, 6), groups)
    scales = torch.tensor([0.5, -2.0, 3.0, 0.25], dtype=torch.float64)
    assert conv.path_scales is not None
    conv.path_scales.data.copy_(scales)
    weight = conv.weight.detach().clone()
    rows = places(12, 6, groups)
    # A group's own columns; all groups split theirs alike.
    columns = places(8 // groups, 4 // groups)
    for source in (0, 1):
        for target in (0, 1):
            block = torch.zeros_like(weight, dtype=torch.bool)
            block[torch.tensor(rows[target])[:, None], torch.tensor(columns[source])] = True
            weight[block] *= scales[2 * source + target]
    expected = octave_conv(x, weight, conv.bias, 6, padding=1, groups=groups, split_groups=groups)
    found = conv(octave(x))
    assert_sizeable(expected.high, expected.low)
    torch.testing.assert_close(found.high, expected.high, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.low, expected.low, rtol=1e-10, atol=1e-10)


class TestStatistics:
    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_recalibration_fills_those_of_the_active_role_and_forgets_the_others(
        self, alpha: float
    ) -> None:
        model = switchable_supernet("SE-ResNeXt-T")
        activate(model, uniform(model, alpha))
        batches = [images(4, 3, 65, 59, seed=seed) for seed in range(3)]
        network = subnet(model, uniform(model, alpha))
        for either in (model, network):
            recalibrate(either, batches)
        folded = fold_switchable(copy.deepcopy(model))
        for ours, alone, norm in zip(norms(folded), norms(network), norms(model), strict=True):
            for name in ("running_mean", "running_var"):
                assert torch.equal(getattr(ours, name), getattr(alone, name))
                if isinstance(norm, SwitchableBatchNorm2d | SwitchableBatchNormAct2d):
                    used, unused = getattr(norm, name), getattr(norm, f"low_{name}")
                    used, unused = (used, unused) if alpha < 1 else (unused, used)
                    if alpha in (0, 1):
                        start = 0.0 if name == "running_mean" else 1.0
                        assert (unused == start).all()
                        assert not (used == start).any()
        model.eval()
        network.eval()
        assert torch.equal(model(batches[0]), network(batches[0]))

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_training_one_role_leaves_the_other(self, alpha: float) -> None:
        model = switchable_supernet("basic").train()
        before = {key: value.clone() for key, value in model.named_buffers()}
        activate(model, uniform(model, alpha))
        model(images(2, 3, *size_of("basic", training=True)))
        for key, value in model.named_buffers():
            last = key.rpartition(".")[2]
            if last != "num_batches_tracked":
                moves = last.startswith("low_") == (alpha == 1)
                assert torch.equal(value, before[key]) != moves, key


class TestCopies:
    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "file"])
    def test_are_the_same_supernet(self, how: str, tmp_path: Path) -> None:
        space = search_space("thumbnail_resnet", (3, 16, 16), (0.0, 0.5, 1.0))
        model = randomise_switchable(randomise(build_supernet(space, seed=0, switchable=True)))
        other = build_supernet(space, seed=1, switchable=True)
        if how == "deepcopy":
            other = copy.deepcopy(model)
        elif how == "pickle":
            other = pickle.loads(pickle.dumps(model))
        elif how == "state_dict":
            other.load_state_dict(model.state_dict())
        else:
            save_weights(model, tmp_path / "weights.safetensors")
            load_weights(other, tmp_path / "weights.safetensors")
        assert is_switchable(other)
        for key, value in other.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key
        x = images(2, 3, 16, 16)
        for alpha in ALPHAS:
            outputs: list[Tensor] = []
            for either in (model, other):
                activate(either, space.uniform(alpha))
                outputs.append(either.eval()(x))
            assert_sizeable(outputs[0])
            assert torch.equal(*outputs)

    def test_a_supernet_of_another_kind_is_refused(self) -> None:
        space = search_space("thumbnail_resnet", (3, 16, 16), (0.0, 0.5))
        plain, model = (build_supernet(space, seed=0, switchable=kind) for kind in (False, True))
        assert not is_switchable(plain)
        with pytest.raises(RuntimeError, match="low_weight"):
            model.load_state_dict(plain.state_dict())


def test_adding_roles_again_forgets_nothing() -> None:
    model = switchable_supernet("thumbnail")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_switchable(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)


def test_what_is_frozen_stays_frozen() -> None:
    model = make_switchable(octavize(create("basic"), 0.5).requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_folding_twice_or_without_roles_changes_nothing() -> None:
    x = images(2, 3, *size_of("basic"))
    plain = octavize(create("basic"), 0.5).eval()
    before = plain(x)
    assert torch.equal(fold_switchable(plain)(x), before)
    model = switchable_supernet("basic").eval()
    activate(model, uniform(model, 0.5))
    folded = fold_switchable(model)(x)
    assert_sizeable(folded)
    assert torch.equal(fold_switchable(model)(x), folded)
