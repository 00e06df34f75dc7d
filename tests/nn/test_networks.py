"""Whole octave networks against a slow reference, and at α = 0 against timm, bit for bit."""

import copy
import random
from typing import Any

import pytest
import timm
import torch
from torch import nn

import octnas.nn
from octnas import OctaveConv2d, OctaveTensor, octavize
from octnas.nn.sites import conv_sites
from tests.nn.reference import ReferenceResNet, assert_sizeable, images, randomise

NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "thumbnail": ("thumbnail_resnet", {}, (15, 13)),
    "thumbnail, strided stem": ("thumbnail_resnet", {"stem_stride": 2}, (18, 21)),
    "thumbnail, two blocks": ("thumbnail_resnet", {"layers": (2, 1, 2)}, (8, 8)),
    "resnet18": ("resnet18", {}, (21, 27)),
    "resnet18, dilated": ("resnet18", {"output_stride": 8}, (21, 27)),
    "resnet26": ("resnet26", {}, (23, 20)),
}
CASES = [
    pytest.param(name, seed, marks=[pytest.mark.slow] if seed and name[0] == "r" else [])
    for name in NETWORKS
    for seed in range(3)
]
VANILLA = {
    "resnet18": ("resnet18", (3, 65, 75)),
    "resnet50": ("resnet50", (3, 64, 64)),
    "thumbnail": ("thumbnail_resnet", (3, 16, 16)),
}


def make(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=10, **kwargs))


def random_alphas(model: nn.Module, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    sites = dict.fromkeys(conv.site_out for conv in conv_sites(model))
    return {site: rng.choice([0.0, 0.0, 0.25, 0.3, 0.5, 0.9, 1.0, 1.0]) for site in sites}


@pytest.mark.parametrize("stride_mode", ["timm", "paper"])
@pytest.mark.parametrize(("name", "seed"), CASES)
def test_logits_and_gradients_are_those_of_the_reference(
    name: str, stride_mode: str, seed: int
) -> None:
    backbone, kwargs, size = NETWORKS[name]
    model = make(backbone, **kwargs).double().eval()
    twin = copy.deepcopy(model)
    alphas, multiple = random_alphas(model, seed), 4 if seed == 2 else 1
    octavize(model, alphas, channel_multiple=multiple, stride_mode=stride_mode)  # type: ignore[arg-type]
    x = images(2, 3, *size, dtype=torch.float64)
    expected = ReferenceResNet(twin, alphas, multiple, stride_mode)(x)
    assert_sizeable(expected)
    logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    names = [key for key, _ in model.named_parameters()]
    found = torch.autograd.grad((logits**2).sum(), list(model.parameters()))
    wanted = torch.autograd.grad((expected**2).sum(), list(twin.parameters()))
    for key, mine, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9, msg=key)
        assert mine.abs().max() > 1e-6, key


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["thumbnail", "resnet18", "resnet26"])
def test_every_parameter_learns_at_any_alpha(name: str, seed: int) -> None:
    """In training mode, where activations and additions are in place (DESIGN §3.1)."""
    backbone, kwargs, size = NETWORKS[name]
    model = make(backbone, **kwargs).train()
    octavize(model, random_alphas(model, seed) if seed else {"*": 0.5, "layer[123]": 1.0})
    model(images(4, 3, *size)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", VANILLA)
def test_alpha_0_is_timm_bit_for_bit(name: str, training: bool) -> None:
    backbone, size = VANILLA[name]
    model = make(backbone).train(training)
    twin = copy.deepcopy(model)
    octavize(model, 0.0)
    assert any(isinstance(module, OctaveConv2d) for module in model.modules())
    for step in range(2):
        x = images(2, *size, seed=step)
        logits, expected = model(x), twin(x)
        assert_sizeable(expected)
        assert torch.equal(logits, expected)
    if training:
        logits.square().sum().backward()
        expected.square().sum().backward()
    for (key, value), other in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None) == (not training)
        assert mine.grad is None or torch.equal(mine.grad, other.grad)


def test_the_papers_strides_differ_from_timms() -> None:
    """By a few per cent (DESIGN §3.9); were they equal, the two modes would not be two."""
    x = images(2, 3, 64, 64)
    timms, papers = (
        octavize(make("resnet18").eval(), 0.0, stride_mode=mode)(x)  # type: ignore[arg-type]
        for mode in ("timm", "paper")
    )
    assert_sizeable(timms, papers)
    assert (timms - papers).norm() / timms.norm() > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "thumbnail_resnet"])
def test_state_dict_is_timms_at_every_alpha(name: str, alpha: float) -> None:
    with torch.device("meta"):
        twin = timm.create_model(name)
        model = octavize(timm.create_model(name), {"*": alpha})
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in twin.state_dict().items()}
    assert list(shapes) == list(twin.state_dict())
    counts = [sum(p.numel() for p in network.parameters()) for network in (model, twin)]
    assert counts[0] == counts[1]
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in twin.named_buffers()]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_timm_checkpoint_loads_at_any_alpha(alpha: float) -> None:
    checkpoint = make("resnet18").state_dict()
    torch.manual_seed(1)
    model = octavize(timm.create_model("resnet18", num_classes=10), {"*": alpha}).eval()
    assert not torch.equal(model.fc.weight, checkpoint["fc.weight"])
    missing, unexpected = model.load_state_dict(checkpoint)
    assert not missing
    assert not unexpected
    x = images(1, 3, 40, 40)
    expected = octavize(make("resnet18").eval(), {"*": alpha})(x)
    assert_sizeable(expected)
    assert torch.equal(model(x), expected)


def test_features_carry_their_split() -> None:
    model = octavize(make("resnet18").eval(), {"layer1*": 0.5, "layer3": 1.0})
    last, (_, *stages) = model.forward_intermediates(images(1, 3, 64, 48))
    kinds = [x.low_channels if isinstance(x, OctaveTensor) else 0 for x in stages]
    assert kinds == [32, 0, 256, 0]
    assert stages[0].high.shape == (1, 32, 16, 12)
    assert stages[0].low.shape == (1, 32, 8, 6)
    assert stages[2].high.shape == (1, 0, 4, 3)
    assert last is stages[3]


@pytest.mark.parametrize("size", [(225, 193), (75, 100), (1, 1)], ids=str)
def test_images_of_any_size_pass(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = octavize(timm.create_model("resnet18"), {"*": 0.5}).eval()
        assert model(torch.empty(1, 3, *size)).shape == (1, 1000)


def test_half_precision_passes() -> None:
    model = octavize(make("thumbnail_resnet").eval(), {"*": 0.5})
    x = images(2, 3, 16, 16)
    expected = model(x)
    half = model.bfloat16()(x.bfloat16())
    assert_sizeable(expected)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


def test_channels_last_gives_the_same() -> None:
    model = octavize(make("thumbnail_resnet").double().eval(), {"*": 0.5})
    x = images(2, 3, 16, 16, dtype=torch.float64)
    expected = model(x)
    assert_sizeable(expected)
    turned = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, expected, rtol=1e-10, atol=1e-10)


assert octnas.nn is not None  # registers thumbnail_resnet
