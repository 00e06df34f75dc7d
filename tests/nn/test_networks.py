"""Whole octave networks against a slow reference, and at α = 0 against timm, bit for bit."""

import copy
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from octnas import OctaveConv2d, OctaveTensor, octavize
from tests.nn.families import FAMILIES, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images, randomise
from tests.nn.reference_network import ReferenceResNet

CASES = [
    pytest.param(name, seed, marks=[pytest.mark.slow] if seed > 1 else [])
    for name in FAMILIES
    for seed in range(4)
]
# timm's own widths, where its kernels are those of real use.
VANILLA: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "resnet18": ("resnet18", {}, (65, 75)),
    "resnet50": ("resnet50", {}, (64, 64)),
    "thumbnail": ("thumbnail_resnet", {}, (16, 16)),
    "resnet34": ("resnet34", {}, (65, 43)),
    "resnet101": ("resnet101", {}, (65, 43)),
    "resnet152": ("resnet152", {}, (65, 43)),
    "wide_resnet50_2": ("wide_resnet50_2", {}, (65, 43)),
}
FAST = ("resnet18", "resnet50", "thumbnail")
REGULARISED = {"drop_path_rate": 0.5, "drop_block_rate": 0.5, "drop_rate": 0.2}


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def check_against_reference(
    model: nn.Module, x: Tensor, alphas: dict[str, float], multiple: int, stride_mode: str
) -> None:
    """Logits, all gradients and, in training mode, the statistics afterwards."""
    twin = copy.deepcopy(model)
    octavize(model, alphas, channel_multiple=multiple, stride_mode=stride_mode)  # type: ignore[arg-type]
    torch.manual_seed(1)
    expected = ReferenceResNet(twin, alphas, multiple, stride_mode)(x)  # type: ignore[arg-type]
    assert_sizeable(expected)
    torch.manual_seed(1)
    logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    wanted = gradients((expected**2).sum(), twin)
    for key, found in gradients((logits**2).sum(), model).items():
        torch.testing.assert_close(found, wanted[key], rtol=1e-7, atol=1e-9, msg=key)
        assert found.abs().max() > 1e-6, key
    state = twin.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("stride_mode", ["timm", "paper"])
@pytest.mark.parametrize(("name", "seed"), CASES)
def test_logits_and_gradients_are_those_of_the_reference(
    name: str, stride_mode: str, seed: int
) -> None:
    model = create(name).double().eval()
    x = images(2, 3, *size_of(name), dtype=torch.float64)
    check_against_reference(
        model, x, random_alphas(model, seed), 2 if seed == 2 else 1, stride_mode
    )


@pytest.mark.parametrize(("name", "seed"), CASES[::2])
def test_training_is_that_of_the_reference(name: str, seed: int) -> None:
    """Batch statistics of either part, and how they move the running ones."""
    model = create(name).double().train()
    x = images(4, 3, *size_of(name, training=True), dtype=torch.float64)
    check_against_reference(model, x, random_alphas(model, seed + 10), 1, "timm")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns_at_any_alpha(name: str, seed: int) -> None:
    """In training mode, where activations and additions are in place (DESIGN §3.1)."""
    model = create(name, **({} if name == "thumbnail" else {"drop_block_rate": 0.1})).train()
    octavize(model, random_alphas(model, seed) if seed else {"*": 0.5, "layer[123]": 1.0})
    model(images(4, 3, *size_of(name, training=True))).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def step(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    logits: Tensor = model(x)
    if model.training:
        model.zero_grad()
        logits.square().sum().backward()
    return logits


def check_equals_timm(model: nn.Module, size: tuple[int, int], training: bool) -> None:
    model.train(training)
    twin = copy.deepcopy(model)
    octavize(model, 0.0)
    assert any(isinstance(module, OctaveConv2d) for module in model.modules())
    for seed in range(2):
        x = images(4, 3, *size, seed=seed)
        logits, expected = step(model, x), step(twin, x)
        assert_sizeable(expected)
        assert torch.equal(logits, expected)
    state = twin.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None) == (not training)
        assert mine.grad is None or torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in VANILLA],
)
def test_alpha_0_is_timm_bit_for_bit(name: str, training: bool) -> None:
    backbone, kwargs, size = VANILLA[name]
    torch.manual_seed(0)
    model = randomise(timm.create_model(backbone, num_classes=10, **kwargs))
    check_equals_timm(model, size, training)


def test_alpha_0_is_timm_with_activating_norms() -> None:
    """timm cannot train it: its blocks add in place to what the last activation keeps."""
    check_equals_timm(create("SE", norm_layer=BatchNormAct2d), (37, 43), False)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["SE", "ResNeXt", "basic"])
def test_activating_norms_without_an_activation_are_plain_ones(name: str, seed: int) -> None:
    """In training, where timm can train them: outputs, gradients and statistics."""
    inert = create(name, norm_layer=partial(BatchNormAct2d, apply_act=False)).train()
    assert isinstance(inert.bn1, BatchNormAct2d)
    plain, alphas = create(name).train(), random_alphas(inert, seed)
    assert list(inert.state_dict()) == list(plain.state_dict())
    octavize(inert, alphas)
    octavize(plain, alphas)
    x = images(4, 3, *size_of(name, training=True))
    for _ in range(2):
        logits, expected = step(inert, x), step(plain, x)
        assert_sizeable(expected)
        assert torch.equal(logits, expected)
    for (key, mine), other in zip(inert.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None, key
        assert torch.equal(mine.grad, other.grad), key  # type: ignore[arg-type]
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in inert.state_dict().items())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", FAMILIES)
def test_alpha_0_is_timm_in_every_family(name: str, training: bool) -> None:
    check_equals_timm(create(name), size_of(name, training=True), training)


@pytest.mark.parametrize(
    "rates", [*({key: rate} for key, rate in REGULARISED.items()), REGULARISED]
)
@pytest.mark.parametrize("name", ["basic", "SE-ResNeXt-T", "D, dilated", "blurred"])
def test_alpha_0_drops_what_timm_drops(name: str, rates: dict[str, float]) -> None:
    """Under the same seed; what is dropped differs from step to step."""
    check_equals_timm(create(name, **rates), size_of(name, training=True), True)
    model, x = create(name, **rates).train(), images(4, 3, *size_of(name, training=True))
    octavize(model, 0.0)
    assert not torch.equal(model(x), model(x))


def test_the_papers_strides_differ_from_timms() -> None:
    """By a few per cent (DESIGN §3.9); were they equal, the two modes would not be two."""
    x = images(2, 3, 64, 64)
    timms, papers = (
        octavize(create("basic").eval(), 0.0, stride_mode=mode)(x)  # type: ignore[arg-type]
        for mode in ("timm", "paper")
    )
    assert_sizeable(timms, papers)
    assert (timms - papers).norm() / timms.norm() > 0.01


def test_features_carry_their_split() -> None:
    model = octavize(
        randomise(timm.create_model("resnet18")).eval(), {"layer1*": 0.5, "layer3": 1.0}
    )
    last, (_, *stages) = model.forward_intermediates(images(1, 3, 64, 48))
    kinds = [x.low_channels if isinstance(x, OctaveTensor) else 0 for x in stages]
    assert kinds == [32, 0, 256, 0]
    assert stages[0].high.shape == (1, 32, 16, 12)
    assert stages[0].low.shape == (1, 32, 8, 6)
    assert stages[2].high.shape == (1, 0, 4, 3)
    assert last is stages[3]


@pytest.mark.parametrize("name", ["thumbnail", "SE-ResNeXt-T", "ECA", "blurred", "depthwise"])
def test_half_precision_passes(name: str) -> None:
    model = create(name).eval()
    octavize(model, random_alphas(model, 0))
    x = images(2, 3, *size_of(name))
    expected = model(x)
    half = model.bfloat16()(x.bfloat16())
    assert_sizeable(expected)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_gives_the_same(name: str) -> None:
    model = create(name).double().eval()
    octavize(model, random_alphas(model, 0))
    x = images(2, 3, *size_of(name), dtype=torch.float64)
    expected = model(x)
    assert_sizeable(expected)
    wanted = gradients((expected**2).sum(), model)
    turned = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, expected, rtol=1e-9, atol=1e-9)
    for key, found in gradients((turned**2).sum(), model).items():
        torch.testing.assert_close(found, wanted[key], rtol=1e-7, atol=1e-9, msg=key)
