"""Tests."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.space.costs import Budget, ConvShape, conv_activations, conv_macs, low_channels
from tests.conftest import conv_shape, counted_macs

EVEN = ConvShape(
    "conv", 512, 512, groups=1, kernel=(3, 3), out_size=(56, 56), site_in="in", site_out="out"
)


def round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


@pytest.mark.parametrize(
    ("alpha", "macs", "memory"),
    [
        (0, 100, 100),
        (0.125, 82, 91),
        (0.25, 67, 81),
        (0.5, 44, 63),
        (0.75, 30, 44),
        (0.875, 26, 35),
        (1, 25, 25),
    ],
)
def test_single_convolution_as_in_table_1_of_the_paper(
    alpha: float, macs: int, memory: int
) -> None:
    share = conv_macs(EVEN, alpha, alpha) / conv_macs(EVEN, 0.0, 0.0)
    assert share == pytest.approx(1 - 3 / 4 * alpha * (2 - alpha), rel=1e-12)
    assert round_half_up(100 * share) == macs
    share = conv_activations(EVEN, alpha) / conv_activations(EVEN, 0.0)
    assert share == pytest.approx(1 - 3 / 4 * alpha, rel=1e-12)
    # 34.375 is 35 in the paper; every other entry is the nearest whole number.
    rounded = math.ceil(100 * share) if alpha == 0.875 else round_half_up(100 * share)
    assert rounded == memory


def test_vanilla_convolution_costs_what_it_costs() -> None:
    assert conv_macs(EVEN, 0.0, 0.0) == 512 * 512 * 3 * 3 * 56 * 56
    assert conv_activations(EVEN, 0.0) == 512 * 56 * 56


@given(conv_shape(), st.data())
def test_macs_are_those_of_the_four_paths(conv: ConvShape, data: st.DataObject) -> None:
    low_in = data.draw(st.integers(0, conv.in_channels))
    low_out = data.draw(st.integers(0, conv.out_channels))
    shares = low_in / conv.in_channels, low_out / conv.out_channels
    assert conv_macs(conv, *shares) == pytest.approx(counted_macs(conv, low_in, low_out), rel=1e-12)
    assert round(conv_macs(conv, *shares)) == counted_macs(conv, low_in, low_out)


@given(conv_shape(), st.data())
def test_activations_are_those_of_the_two_parts(conv: ConvShape, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, conv.out_channels))
    height, width = conv.out_size
    half = math.ceil(height / 2) * math.ceil(width / 2)
    values = (conv.out_channels - low) * height * width + low * half
    assert round(conv_activations(conv, low / conv.out_channels)) == values


@given(conv_shape(site_in=None), st.floats(0, 1), st.floats(0, 1))
def test_pooled_stride_does_not_depend_on_the_input(
    conv: ConvShape, alpha_in: float, alpha_out: float
) -> None:
    vanilla = conv.macs_per_pixel * conv.pixels
    q = conv.low_pixels / conv.pixels
    expected = vanilla * ((1 - alpha_out) + q * alpha_out)  # DESIGN §3.3
    assert conv_macs(conv, alpha_in, alpha_out) == pytest.approx(expected, rel=1e-12)


@given(conv_shape(in_channels=6, out_channels=6), st.integers(0, 6))
def test_depthwise_has_no_path_between_high_and_low(conv: ConvShape, low: int) -> None:
    depthwise = replace(conv, groups=6)
    assert depthwise.depthwise
    expected = counted_macs(depthwise, low, low)
    assert conv_macs(depthwise, low / 6, low / 6) == pytest.approx(expected, rel=1e-12)


def test_one_group_of_one_channel_is_not_depthwise() -> None:
    conv = replace(EVEN, in_channels=1, out_channels=1)
    assert not conv.depthwise
    assert conv_macs(conv, 1.0, 0.0) == 9 * 28 * 28  # L→H


@pytest.mark.parametrize("site_in", ["in", None])
def test_arrays_and_tensors_go_through_the_same_lines(site_in: str | None) -> None:
    conv = replace(EVEN, site_in=site_in)
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 5))
    expected = [conv_macs(conv, x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(conv_macs(conv, a, b), expected, rtol=1e-12)
    tensors = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    macs = conv_macs(conv, *tensors)
    np.testing.assert_allclose(macs.detach().numpy(), expected, rtol=1e-12)
    macs.sum().backward()
    removed = conv.macs_per_pixel * (conv.pixels - conv.low_pixels)
    slope = -removed * (1 - (a if site_in else 0 * a))
    np.testing.assert_allclose(tensors[1].grad.numpy(), slope, rtol=1e-12)


@given(
    st.fractions(0, 1, max_denominator=1000),
    st.integers(1, 2048),
    st.integers(1, 32),
    st.integers(1, 8),
)
def test_low_channels_are_the_floor_to_a_multiple(
    alpha: Fraction, channels: int, multiple: int, groups: int
) -> None:
    low = low_channels(float(alpha), channels, multiple, groups)
    step = math.lcm(multiple, groups)
    assert low == (channels if alpha == 1 else alpha * channels // step * step)
    assert low_channels(low / channels, channels, multiple, groups) == low


@pytest.mark.parametrize(
    ("alpha", "channels", "multiple", "low"),
    [(0.3, 10, 1, 3), (0.7, 10, 1, 7), (0.125, 64, 16, 0), (0.125, 64, 8, 8), (1, 10, 4, 10)],
)
def test_low_channels_of_some(alpha: float, channels: int, multiple: int, low: int) -> None:
    assert low_channels(alpha, channels, multiple) == low


def test_every_realised_share_comes_back_as_the_same_number() -> None:
    for channels in [*range(1, 130), 256, 512, 1000, 2048]:
        quantized = [low_channels(low / channels, channels, 1) for low in range(channels + 1)]
        assert quantized == list(range(channels + 1))


def test_budget_includes_its_bounds() -> None:
    budget = Budget("some", max_macs=20, min_macs=10)
    assert [macs for macs in range(30) if budget.admits(macs)] == list(range(10, 21))
