"""Values by role and path scales: a supernet's own, of which a subnet needs none."""

import copy

import pytest
import timm
import torch

import octnas
from octnas.nn import activate, subnet
from octnas.nn.octavize import octavize
from octnas.nn.roles import (
    add_roles,
    fold_roles,
    has_roles,
)
from tests.nn.families import arguments, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images
from tests.nn.roles import ALPHAS, role_supernet, uniform

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
    model = role_supernet(name)
    x = images(2, 3, *size_of(name, training=True))
    for seed in (0, 1, 2):
        alphas = random_alphas(model, seed)
        activate(model, alphas)
        network, whole = subnet(model, alphas), copy.deepcopy(model)
        assert not has_roles(network)
        found, expected = network.train(training)(x), whole.train(training)(x)
        assert_sizeable(expected)
        assert torch.equal(found, expected)
        # And, in training, the statistics that both have gathered.
        network.eval()
        again, expected_again = network(x), fold_roles(whole.eval())(x)
        assert torch.equal(again, expected_again)


@pytest.mark.parametrize("name", VARIANTS)
def test_adding_roles_changes_nothing_at_first(name: str) -> None:
    x = images(2, 3, *size_of(name, training=True))
    plain = octavize(create(name), 0.0)
    model = add_roles(copy.deepcopy(plain))
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
    model = role_supernet(name).train()
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
    model = role_supernet(name)
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
    model = role_supernet(name).double().eval()
    x = images(2, 3, *size_of(name), dtype=torch.float64)
    for seed in (0, 1):
        activate(model, random_alphas(model, seed))
        with torch.no_grad():
            expected = model(x)
            assert_sizeable(expected)
            torch.testing.assert_close(octnas.deploy(model)(x), expected, rtol=1e-9, atol=1e-9)
    assert has_roles(model)


def test_roles_and_scales_matter() -> None:
    model, x = role_supernet("ResNeXt").eval(), images(2, 3, *size_of("ResNeXt"))
    activate(model, uniform(model, 0.5))
    before = model(x)
    for kind in ("low_weight", "low_bias", "low_running_mean", "low_running_var", "path_scales"):
        other = copy.deepcopy(model)
        for key, value in other.state_dict().items():
            if key.endswith(f".{kind}"):
                value.mul_(1.5)
        assert_sizeable(other(x) - before)
