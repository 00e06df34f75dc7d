"""Octave convolutions of any kind: drawn settings, numerical gradients, frozen parts, autocast."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octnas import OctaveConv2d, OctaveTensor
from octnas.nn.octave import Features
from tests.nn.convs import check, expected_of, features, octave, parts
from tests.nn.reference import Maps, assert_sizeable


def make(channels: tuple[int, int], kernel: int = 3, dilation: int = 1, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    padding = dilation * (kernel - 1) // 2
    conv = OctaveConv2d(*channels, kernel, padding=padding, dilation=dilation, **kwargs)
    return conv.double()


@st.composite
def cases(draw: st.DrawFn) -> tuple[OctaveConv2d, Maps]:
    """A convolution, grouped or not, and a feature map that fits it."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 5]))
    per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups_in = groups if groups > 1 else draw(st.sampled_from([1, 1, 2, 3]))
    groups_out = groups * draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups_in * per_group[0], groups_out * per_group[1]
    if 1 < groups == channels[0] == channels[1]:  # depthwise has its own tests
        groups_out, channels = 2 * groups_out, (channels[0], 2 * channels[1])
    conv = make(
        channels,
        kernel=draw(st.sampled_from([1, 3, 5])),
        dilation=draw(st.integers(1, 2)),
        stride=draw(st.integers(1, 2)),
        groups=groups,
        split_groups=groups_out,
        bias=draw(st.booleans()),
        stride_mode=draw(st.sampled_from(["timm", "paper"])),
        channel_multiple=draw(st.sampled_from([1, 1, 2])),
        alpha=draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    )
    low = groups_in * draw(st.integers(0, per_group[0]))
    size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return conv, features(channels[0], low, size, groups_in)


@settings(max_examples=150)
@given(cases())
def test_any_convolution_is_that_of_the_reference(case: tuple[OctaveConv2d, Maps]) -> None:
    conv, x = case
    vanilla = conv.low_channels == x.low.shape[1] == 0
    pooled = not (vanilla and conv.stride_mode == "timm")
    check(conv, x, expected_of(conv, x, pooled=pooled), sizeable=False)


@settings(max_examples=400)
@given(cases())
@pytest.mark.slow
def test_many_more_convolutions(case: tuple[OctaveConv2d, Maps]) -> None:
    test_any_convolution_is_that_of_the_reference.hypothesis.inner_test(case)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "size", [pytest.param((4, 4), marks=pytest.mark.slow), (3, 5)], ids=["even", "odd"]
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("low_in", "alpha"), [(0, 0.5), (2, 0.5), (4, 0.5), (2, 1.0), (2, 0.0)])
def test_gradients_are_the_numerical_ones(
    low_in: int, alpha: float, groups: int, stride: int, size: tuple[int, int]
) -> None:
    low_in *= 1 if groups < 4 else 2
    channels = (4, 4) if groups < 4 else (8, 8)
    conv = make(channels, groups=groups, stride=stride, stride_mode="paper", alpha=alpha)
    x = features(channels[0], low_in, size, groups)
    present = [part for part in (x.high, x.low) if part.numel()]

    def outputs(weight: Tensor, bias: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        high, low = given if len(given) == 2 else (x.high, given[0]) if low_in else (*given, x.low)
        y = torch.func.functional_call(
            conv, {"weight": weight, "bias": bias}, (octave(Maps(high, low, groups)),)
        )
        return tuple(part for part in parts(y) if part.numel())

    assert torch.autograd.gradcheck(outputs, (conv.weight, conv.bias, *present))


LEAVES = ("high", "low", "weight", "bias")


@pytest.mark.parametrize(
    "wanted", [names for n in range(1, 4) for names in itertools.combinations(LEAVES, n)], ids=str
)
@pytest.mark.parametrize("groups", [1, 4])
def test_frozen_parts_change_no_other_gradient(groups: int, wanted: tuple[str, ...]) -> None:
    conv = make((8, 8), groups=groups, alpha=0.5)
    x = features(8, 4, (7, 6), groups)
    leaves = {"high": x.high, "low": x.low, "weight": conv.weight, "bias": conv.bias}

    def gradients() -> dict[str, Tensor | None]:
        for tensor in leaves.values():
            tensor.grad = None
        y = conv(octave(x))
        ((y.high**2).sum() + (y.low**2).sum()).backward()
        return {name: tensor.grad for name, tensor in leaves.items()}

    expected = gradients()
    for name, tensor in leaves.items():
        tensor.requires_grad_(name in wanted)
    for name, found in gradients().items():
        assert (found is not None) == (name in wanted)
        if found is not None:
            assert expected[name] is not None
            assert_sizeable(found)
            assert torch.equal(found, expected[name])  # type: ignore[arg-type]


def test_nothing_to_learn_gives_no_graph() -> None:
    conv = make((8, 8), groups=4, alpha=0.5).requires_grad_(False)
    x = features(8, 4, (7, 6), 4)
    y = conv(OctaveTensor(x.high.detach(), x.low.detach(), 4))
    assert not y.high.requires_grad
    assert not y.low.requires_grad
    with torch.no_grad():
        other = conv(octave(x))
    assert torch.equal(other.high, y.high)
    assert torch.equal(other.low, y.low)


def test_one_part_alone_may_be_used() -> None:
    """As where a loss sees only the high part; the other's gradient is zero."""
    conv = make((8, 8), groups=4, alpha=0.5)
    x = features(8, 4, (7, 6), 4)
    expected = expected_of(conv, x, pooled=True)
    leaves = [x.high, x.low, conv.weight, conv.bias]
    for found, wanted in zip(parts(conv(octave(x))), (expected.high, expected.low), strict=True):
        gradients = torch.autograd.grad((found**2).sum(), leaves, retain_graph=True)
        others = torch.autograd.grad((wanted**2).sum(), leaves, retain_graph=True)
        for mine, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("low_in", "alpha"), [(0, 0.5), (4, 0.5), (8, 0.5), (4, 1.0), (8, 0.0)])
def test_autocast_computes_in_its_own_precision(
    low_in: int, alpha: float, stride: int, groups: int
) -> None:
    """bfloat16 forward, float32 gradients, close to those without autocast."""
    if groups == 8:
        alpha = low_in / 8  # depthwise
    torch.manual_seed(0)
    conv = OctaveConv2d(8, 8, 3, padding=1, groups=groups, stride=stride, alpha=alpha)
    split_groups = 1 if groups == 8 else groups
    maps = [part.detach().float().requires_grad_() for part in vars_of(low_in, split_groups)]
    x: Features = OctaveTensor(maps[0], maps[1], split_groups) if low_in else maps[0]
    leaves = [part for part in (*maps, conv.weight, conv.bias) if part is not None and part.numel()]
    leaves = leaves if low_in else [leaf for leaf in leaves if leaf is not maps[1]]

    def run(enabled: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = parts(conv(x))
        total = sum(((y.float() ** 2).sum() for y in outputs), torch.zeros(()))
        return outputs, torch.autograd.grad(total, leaves)

    outputs, gradients = run(True)
    wanted_outputs, wanted_gradients = run(False)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    for found, wanted in zip(
        [*outputs, *gradients], [*wanted_outputs, *wanted_gradients], strict=True
    ):
        if wanted.numel():
            assert_sizeable(wanted)
            assert (found.float() - wanted).norm() / wanted.norm() < 0.03


@pytest.mark.parametrize(("low_in", "alpha"), [(0, 0.5), (4, 0.5), (8, 0.0)])
def test_autocast_leaves_float64_alone(low_in: int, alpha: float) -> None:
    """As torch's own convolutions do."""
    conv, x = make((8, 8), alpha=alpha), features(8, low_in, (9, 8))
    expected = parts(conv(octave(x)))
    with torch.autocast("cpu", torch.bfloat16):
        found = parts(conv(octave(x)))
        assert torch.nn.Conv2d(8, 8, 1).double()(x.high.new_ones(1, 8, 2, 2)).dtype is torch.float64
    for mine, other in zip(found, expected, strict=True):
        assert_sizeable(other)
        assert torch.equal(mine, other)
    loss = sum((part.square().sum() for part in found), torch.zeros(()))
    assert torch.autograd.grad(loss, conv.weight)[0].dtype is torch.float64


def vars_of(low: int, groups: int) -> tuple[Tensor, Tensor]:
    x = features(8, low, (9, 8), groups)
    return x.high, x.low


@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_refused(power: int) -> None:
    """The backward pass is written by hand, once; silence would be a wrong result.

    Of a sum, the incoming gradient is constant: it needs no gradient itself.
    """
    conv, x = make((8, 8), groups=4, alpha=0.5), features(8, 4, (7, 6), 4)
    y = conv(octave(x))
    total = (y.high**power).sum() + (y.low**power).sum()
    with pytest.raises(RuntimeError, match=r"octave convolution .* once.*create_graph") as caught:
        torch.autograd.grad(total, [x.high], create_graph=True)
    assert "\n" not in str(caught.value)


def test_the_same_graph_may_be_derived_again() -> None:
    conv, x = make((8, 8), groups=4, alpha=0.5), features(8, 4, (7, 6), 4)
    y = conv(octave(x))
    total = y.high.square().sum() + y.low.sum()
    with torch.enable_grad():
        first = torch.autograd.grad(total, [x.high, conv.weight], retain_graph=True)
    for found, wanted in zip(torch.autograd.grad(total, [x.high, conv.weight]), first, strict=True):
        assert_sizeable(wanted)
        assert torch.equal(found, wanted)
        assert not wanted.requires_grad


def test_images_of_no_batch_pass() -> None:
    conv = make((8, 8), groups=4, alpha=0.5)
    y = conv(OctaveTensor(torch.zeros(0, 4, 7, 6).double(), torch.zeros(0, 4, 4, 3).double(), 4))
    assert y.high.shape == (0, 4, 7, 6)
    assert y.low.shape == (0, 4, 4, 3)


def test_what_was_given_stays_as_it_is() -> None:
    """Sums are made in place, but never in an input."""
    conv, x = make((8, 8), groups=4, alpha=0.5), features(8, 4, (7, 6), 4)
    before = [part.detach().clone() for part in (x.high, x.low, conv.weight, conv.bias)]
    y = conv(octave(x))
    torch.autograd.grad((y.high**2).sum() + (y.low**2).sum(), [x.high, x.low, conv.weight])
    for part, kept in zip((x.high, x.low, conv.weight, conv.bias), before, strict=True):
        assert torch.equal(part, kept)
