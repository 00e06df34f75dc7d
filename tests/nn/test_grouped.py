"""Grouped and depthwise octave convolutions: the split is made inside each group."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octnas import OctaveConv2d, OctaveTensor
from octnas.errors import SettingError
from octnas.nn.octave import merge_channels, split_channels
from tests.nn import reference
from tests.nn.convs import check, expected_of, features, leaf, octave
from tests.nn.reference import Maps, assert_sizeable, images

GROUPS, IN, OUT = 4, 16, 24  # four channels in and six out per group
SIZES = [(8, 8), (7, 7), (13, 9), (1, 1)]
SHARES = (0.0, 0.25, 0.5, 1.0)


def make(channels_in: int = IN, channels_out: int = OUT, **kwargs: Any) -> OctaveConv2d:
    kernel, dilation = kwargs.get("kernel_size", 3), kwargs.get("dilation", 1)
    defaults = {"kernel_size": 3, "padding": dilation * (kernel - 1) // 2, "groups": GROUPS}
    torch.manual_seed(0)
    return OctaveConv2d(channels_in, channels_out, **{**defaults, **kwargs}).double()  # type: ignore[arg-type]


def four_convolutions(conv: OctaveConv2d, x: Maps) -> Maps:
    """One group convolution per path, of the rows and columns that belong to it (§3.3)."""
    groups, weight = conv.groups, conv.weight
    per_group = conv.in_channels // groups, conv.out_channels // groups
    low = x.low.shape[1] // groups, conv.low_channels // groups
    columns = range(per_group[0] - low[0]), range(per_group[0] - low[0], per_group[0])
    in_group = range(per_group[1] - low[1]), range(per_group[1] - low[1], per_group[1])
    rows = [[g * per_group[1] + i for g in range(groups) for i in part] for part in in_group]

    def path(part: Tensor, source: int, target: int) -> Tensor:
        kernel = weight[rows[target]][:, list(columns[source])]
        if not kernel.numel():
            return part.new_zeros(2, len(rows[target]), *part.shape[2:])
        return F.conv2d(part, kernel, padding=conv.padding, groups=groups)  # type: ignore[arg-type]

    halved = reference.pool(x.high)
    if conv.stride == (1, 1):
        high = path(x.high, 0, 0) + reference.upsample(path(x.low, 1, 0), x.size)
        low_part = path(halved, 0, 1) + path(x.low, 1, 1)
    else:
        high = path(halved, 0, 0) + path(x.low, 1, 0)
        low_part = path(reference.pool(halved), 0, 1) + path(reference.pool(x.low), 1, 1)
    biases = [conv.bias[at][:, None, None] for at in rows]  # type: ignore[index]
    return Maps(high + biases[0], low_part + biases[1], groups)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("alpha_in", "alpha_out"), list(itertools.product(SHARES, SHARES)))
def test_equals_four_group_convolutions(
    alpha_in: float, alpha_out: float, stride: int, size: tuple[int, int]
) -> None:
    conv = make(alpha=alpha_out, stride=stride, stride_mode="paper")
    x = features(IN, int(alpha_in * IN), size, GROUPS)
    check(conv, x, four_convolutions(conv, x), sizeable=size != (1, 1))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"bias": False},
        {"kernel_size": 1},
        {"dilation": 2},
        {"kernel_size": 5, "stride": 2},
        {"stride": 2, "stride_mode": "timm"},
        {"channel_multiple": 8},
        {"split_groups": 8},
        {"split_groups": 24},
        {"groups": 8},
        {"groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(("alpha_in", "alpha_out"), [(0, 0.5), (0.5, 0.5), (0.5, 1), (1, 0.4)])
def test_other_convolutions_too(alpha_in: float, alpha_out: float, kwargs: dict[str, Any]) -> None:
    conv = make(alpha=alpha_out, **kwargs)
    x = features(IN, int(alpha_in * IN), (13, 9), conv.groups)
    check(conv, x, expected_of(conv, x, pooled=True))


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("alpha_out", SHARES)
@pytest.mark.parametrize("low_in", [0, 8, 16])
def test_plain_convolutions_take_and_give_grouped_splits(
    low_in: int, alpha_out: float, groups: int
) -> None:
    """As the 1×1 convolutions around the grouped one of a ResNeXt block."""
    before = make(groups=1, split_groups=groups, alpha=alpha_out, kernel_size=1)
    plain = features(IN, low_in, (7, 6))
    check(before, plain, expected_of(before, plain, pooled=True))
    after = make(groups=1, alpha=alpha_out)
    grouped = features(IN, low_in, (7, 6), groups)
    check(after, grouped, expected_of(after, grouped, pooled=True))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_bottleneck_of_three(share: float, stride: int) -> None:
    """1×1, grouped 3×3, 1×1: no channel may be taken for another on the way."""
    convs = [
        make(IN, IN, groups=1, split_groups=GROUPS, kernel_size=1, alpha=share, bias=False),
        make(IN, OUT, stride=stride, alpha=share, bias=False),
        make(OUT, IN, groups=1, kernel_size=1, alpha=0.5, bias=False),
    ]
    x = y = features(IN, 4, (9, 10))
    found = octave(x)
    for conv in convs:
        found, y = conv(found), expected_of(conv, y, pooled=True)
    assert isinstance(found, OctaveTensor)
    assert_sizeable(y.high, y.low)
    torch.testing.assert_close(found.high, y.high, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.low, y.low, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "kwargs", [{}, {"stride": 2}, {"stride": 2, "stride_mode": "paper"}, {"dilation": 2}], ids=str
)
@pytest.mark.parametrize("share", SHARES)
def test_depthwise_keeps_every_channel_where_it_is(
    share: float, kwargs: dict[str, Any], size: tuple[int, int]
) -> None:
    conv = make(IN, IN, groups=IN, alpha=share, **kwargs)
    x = features(IN, int(share * IN), size)
    pooled = share > 0 or conv.stride_mode == "paper"
    check(conv, x, expected_of(conv, x, pooled=pooled), sizeable=size != (1, 1))


@pytest.mark.parametrize(("low_in", "share"), [(0, 0.5), (8, 0.25), (8, 1.0), (16, 0.0), (4, 0.75)])
def test_depthwise_brings_its_input_to_its_own_split(low_in: int, share: float) -> None:
    conv = make(IN, IN, groups=IN, alpha=share)
    x = features(IN, low_in, (7, 6))
    expected = expected_of(conv, reference.resplit(x, conv.low_channels), pooled=True)
    check(conv, x, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [2, GROUPS, IN])
def test_vanilla_is_torch_bit_for_bit(groups: int, stride: int) -> None:
    conv = make(IN, 2 * IN, groups=groups, stride=stride)
    x = features(IN, 0, (13, 9)).high
    expected = nn.Conv2d.forward(conv, x)
    assert_sizeable(expected)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(
    ("alpha", "multiple", "low"),
    [(0.1, 1, 0), (0.2, 1, 4), (0.5, 1, 12), (0.5, 3, 12), (0.5, 8, 8), (0.9, 16, 16), (1, 16, 24)],
)
def test_low_channels_are_a_multiple_of_the_groups(alpha: float, multiple: int, low: int) -> None:
    conv = make(alpha=alpha, channel_multiple=multiple)
    assert conv.low_channels == low
    y = conv(features(IN, 0, (8, 8)).high)
    assert (y.low_channels if isinstance(y, OctaveTensor) else 0) == low


@pytest.mark.parametrize(
    ("groups", "found"), [(GROUPS, 1), (GROUPS, 2), (GROUPS, 8), (2, GROUPS), (IN, 2), (IN, 4)]
)
def test_inputs_of_another_split_are_refused(groups: int, found: int) -> None:
    """Else a channel would be multiplied with another channel's weights."""
    x = features(IN, IN // 2, (8, 8), found)
    with pytest.raises(ValueError, match=f"{found}"):
        make(IN, IN, groups=groups, alpha=0.5)(octave(x))


@pytest.mark.parametrize("split_groups", [0, -4, 2, 3, 6, 16])
def test_impossible_splits_are_refused(split_groups: int) -> None:
    with pytest.raises(SettingError, match="split_groups"):
        make(split_groups=split_groups)
    conv = nn.Conv2d(IN, OUT, 3, padding=1, groups=GROUPS)
    with pytest.raises(SettingError, match="split_groups"):
        OctaveConv2d.from_conv(conv, split_groups=split_groups)
    assert type(conv) is nn.Conv2d


def test_a_depthwise_output_is_split_as_its_input() -> None:
    """Whole channels are high or low as they are in the input, so there is nothing to choose."""
    x = features(IN, IN // 2, (8, 8))
    with pytest.raises((SettingError, ValueError), match="split"):
        make(IN, IN, groups=IN, split_groups=2, alpha=0.5)(octave(x))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    ("groups", "low"), [(1, 0), (1, 5), (1, 12), (2, 4), (3, 3), (6, 6), (4, 12)]
)
def test_merging_undoes_splitting(groups: int, low: int, dim: int) -> None:
    values = images(*(12, 2) if dim == 0 else (2, 12), seed=3)
    high_part, low_part = split_channels(values, low, groups, dim)
    wanted = reference.places(12, low, groups)
    for part, at in zip((high_part, low_part), wanted, strict=True):
        assert torch.equal(part, values.index_select(dim, torch.tensor(at, dtype=torch.long)))
    assert torch.equal(merge_channels(high_part, low_part, groups, dim), values)


def test_sums_of_different_groups_are_refused() -> None:
    parts = leaf(images(1, 4, 8, 8)), leaf(images(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"2 groups.*4 groups"):
        OctaveTensor(*parts, 2) + OctaveTensor(*parts, 4)
