"""Compiled and exported networks agree with eager ones, at mixed α and without a graph break."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers import create_attn
from torch import Tensor, nn

from octnas import OctaveTensor, octavize
from octnas.nn.layers import OctaveEca, OctaveEffectiveSE, OctaveSE
from tests.nn.families import FAMILIES, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images

ATTENTION = {"se": OctaveSE, "ese": OctaveEffectiveSE, "eca": OctaveEca, "ecam": OctaveEca}


def some(*fast: str) -> list[Any]:
    """All families, the named ones by default and the others among the slow tests."""
    others = (pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n not in fast)
    return [*fast, *others]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(name: str, seed: int = 1, **kwargs: Any) -> nn.Module:
    model = create(name, **kwargs)
    return octavize(model, random_alphas(model, seed)).eval()


def compiled(model: nn.Module, backend: str = "aot_eager") -> Callable[[Tensor], Tensor]:
    return torch.compile(model, fullgraph=True, backend=backend)  # type: ignore[return-value]


def check_close(found: Tensor, expected: Tensor) -> None:
    assert_sizeable(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", some())
def test_compiled_inference_agrees(name: str) -> None:
    model, x = network(name), images(2, 3, *size_of(name))
    with torch.no_grad():
        check_close(compiled(model)(x), model(x))


def check_training(model: nn.Module, x: Tensor, backend: str) -> None:
    """Logits, gradients and the statistics of batch norms, in float64.

    In float32 a different order of additions turns some ReLU on or off.
    """
    model, x = model.double().train(), x.double()
    twin = copy.deepcopy(model)
    expected, found = model(x), compiled(twin, backend)(x)
    assert_sizeable(expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (key, mine), other in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert mine.grad is not None, key
        assert other.grad is not None, key
        assert (mine.grad - other.grad).norm() <= 1e-9 * other.grad.norm(), key
    state = model.state_dict()
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("ResNeXt"))
def test_compiled_training_agrees(name: str) -> None:
    check_training(network(name), images(4, 3, *size_of(name, training=True)), "aot_eager")


@pytest.mark.slow
def test_what_is_dropped_is_compiled_too() -> None:
    """Random, so that only the form of the graph can be checked: no break, a gradient for all."""
    model = network("basic", drop_path_rate=0.3, drop_block_rate=0.2).train()
    compiled(model)(images(4, 3, 65, 59)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SE-ResNeXt-T", "depthwise", "basic"])
def test_inductor_agrees(name: str) -> None:
    model, x = network(name), images(4, 3, *size_of(name, training=True))
    with torch.no_grad():
        check_close(compiled(model, "inductor")(x), model(x))
    torch._dynamo.reset()
    check_training(model, x, "inductor")


@pytest.mark.parametrize("name", some("depthwise"))
def test_exported_networks_agree_at_any_batch(name: str) -> None:
    model, x = network(name), images(3, 3, *size_of(name))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        exported = program.module()
        for count in (3, 1):
            check_close(exported(x[:count]), model(x[:count]))
    assert set(program.state_dict) >= set(dict(model.named_parameters()))


def test_another_alpha_is_compiled_anew() -> None:
    """α is no part of the weights: a compiled supernet must not keep an old one."""
    small = create("thumbnail", layers=(1, 1), channels=(8, 12))
    model, x = octavize(small, {}).eval(), images(2, 3, 15, 13)
    fast = compiled(model)
    with torch.no_grad():
        for alpha in (0.0, 0.5):
            for module in model.modules():
                if hasattr(module, "set_alpha"):
                    module.set_alpha(alpha)
                elif hasattr(module, "low_channels"):
                    module.low_channels = int(alpha * module.channels)
            check_close(fast(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("low", [3, 6, 12])
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_learns_when_compiled(kind: str, low: int) -> None:
    """Inductor overwrites what it takes for dead, such as gates of which views are still needed."""
    torch.manual_seed(0)
    plain = create_attn(kind, 12)
    plain.__class__ = ATTENTION[kind]
    gradients = []
    for module in (plain, compiled(copy.deepcopy(plain), "inductor")):
        parts = images(2, 12 - low, 14, 14), images(2, low, 7, 7, seed=1)
        leaves = [part.requires_grad_() for part in parts if part.numel()]
        y = module(OctaveTensor(*parts))  # type: ignore[arg-type]
        loss = (y.high * images(*parts[0].shape, seed=2)).sum()
        loss = loss + (y.low * images(*parts[1].shape, seed=3)).sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for found, wanted in zip(*reversed(gradients), strict=True):
        assert_sizeable(wanted)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
