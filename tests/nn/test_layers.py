from typing import Any

import pytest
import torch
from timm.layers import AvgPool2dSame, BlurPool2d, SelectAdaptivePool2d
from timm.layers.activations import GELU
from torch import Tensor, nn

from octnas.nn import layers
from octnas.nn.octave import OctaveTensor
from tests.nn.convs import features, octave
from tests.nn.reference import Maps, blur_pool, images
from tests.nn.reference_network import both

SIZE = (7, 10)
HALF = (4, 5)
SIZES = [(7, 10), (8, 8), (9, 6), (2, 3), (5, 5)]
CHANNELS = 4

# octnas's layer, and torch's or timm's that it stands for.
ACTIVATIONS: list[tuple[nn.Module, nn.Module]] = [
    (layers.OctaveReLU(), nn.ReLU()),
    (layers.OctaveReLU6(), nn.ReLU6()),
    (layers.OctaveLeakyReLU(0.2), nn.LeakyReLU(0.2)),
    (layers.OctaveSiLU(), nn.SiLU()),
    (layers.OctaveGELU(), GELU()),
    (layers.OctaveMish(), nn.Mish()),
    (layers.OctaveHardswish(), nn.Hardswish()),
]
POOLS: list[tuple[nn.Module, nn.Module]] = [
    (layers.OctaveMaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
    (layers.OctaveMaxPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)),
    (
        layers.OctaveAvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    ),
    (layers.OctaveAvgPool2d(2), nn.AvgPool2d(2)),
    (layers.OctaveAvgPool2dSame(2, 1), AvgPool2dSame(2, 1)),
    (layers.OctaveBlurPool2d(CHANNELS), BlurPool2d(CHANNELS)),
    (layers.OctaveBlurPool2d(), BlurPool2d()),
    (layers.OctaveBlurPool2d(CHANNELS, stride=1), BlurPool2d(CHANNELS, stride=1)),
]
PAIRS = [
    *ACTIVATIONS,
    *POOLS,
    (
        layers.OctaveBlurPool2d(CHANNELS, filt_size=5, pad_mode="constant"),
        BlurPool2d(CHANNELS, filt_size=5, pad_mode="constant"),
    ),
    (
        layers.OctaveGlobalPool2d(pool_type="catavgmax", flatten=True),
        SelectAdaptivePool2d(pool_type="catavgmax", flatten=True),
    ),
]


def random_parts(low: int, groups: int = 1) -> OctaveTensor:
    high_part = images(2, CHANNELS - low, *SIZE, seed=1)
    return OctaveTensor(high_part, images(2, low, *HALF, seed=2), groups)


@pytest.mark.parametrize("low", [1, 3, 4])
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_acts_on_both_parts(low: int, inplace: bool) -> None:
    x = random_parts(low)
    expected = x.high.clamp(min=0), x.low.clamp(min=0)
    y = layers.OctaveReLU(inplace)(x)
    assert (y.low is x.low) == inplace
    assert torch.equal(y.high, expected[0])
    assert torch.equal(y.low, expected[1])


@pytest.mark.parametrize(("low", "groups"), [(1, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize(("ours", "torchs"), ACTIVATIONS, ids=str)
def test_activations_act_on_both_parts(
    ours: nn.Module, torchs: nn.Module, low: int, groups: int
) -> None:
    x = random_parts(low, groups)
    expected = torchs(x.high.clone()), torchs(x.low.clone())
    y = ours(x)
    assert torch.equal(y.high, expected[0])
    assert torch.equal(y.low, expected[1])
    assert y.groups == groups


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("low", "groups"), [(1, 1), (3, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize(("ours", "torchs"), POOLS, ids=str)
def test_pools_act_on_both_parts_and_keep_their_sizes_in_step(
    ours: nn.Module, torchs: nn.Module, low: int, groups: int, size: tuple[int, int]
) -> None:
    x = features(CHANNELS, low, size, groups)
    expected = both(x, torchs)
    y = ours.double()(octave(x))
    assert y.groups == groups
    assert y.low.shape[-2:] == tuple(-(-side // 2) for side in y.high.shape[-2:])
    results = []
    for outputs in (y, expected):
        loss = (outputs.high**3).sum() + (outputs.low**3).sum()
        leaves = [part for part in (x.high, x.low) if part.numel()]
        results.append([outputs.high, outputs.low, *torch.autograd.grad(loss, leaves)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert wanted.numel() == 0 or wanted.abs().max() > 1e-2


@pytest.mark.parametrize("low", [2, 4])
@pytest.mark.parametrize("filt_size", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("size", [(8, 12), (15, 9), (16, 10)], ids=str)
def test_blurring_keeps_constants_at_any_filter(
    size: tuple[int, int], filt_size: int, low: int
) -> None:
    half = tuple(-(-side // 2) for side in size)
    x = OctaveTensor(torch.full((1, 4 - low, *size), 3.0), torch.full((1, low, *half), 5.0))
    y = layers.OctaveBlurPool2d(4, filt_size=filt_size)(x)
    wanted = BlurPool2d(1, filt_size=filt_size)(torch.zeros(1, 1, *size)).shape[-2:]
    assert y.high.shape[-2:] == wanted
    assert y.low.shape[-2:] == tuple(-(-side // 2) for side in wanted)
    torch.testing.assert_close(y.high, torch.full_like(y.high, 3.0))
    torch.testing.assert_close(y.low, torch.full_like(y.low, 5.0))


def test_maps_of_a_pixel_are_blurred_too() -> None:
    """A low part may be too small to be mirrored where the high one is not."""
    x = Maps(images(1, 2, 2, 2), images(1, 2, 1, 1, seed=1))
    y = layers.OctaveBlurPool2d(4)(octave(x))
    torch.testing.assert_close(y.low, x.low)
    torch.testing.assert_close(y.high, blur_pool(x.high, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("counts_padding", [False, True])
def test_averaging_kernels_are_no_larger_than_the_map(
    size: tuple[int, int], stride: int, counts_padding: bool
) -> None:
    """Engines refuse larger ones; the result is that of torch's larger kernel."""
    kernel = 2 if stride == 2 else (1, 1)
    args: dict[str, Any] = {"ceil_mode": True, "count_include_pad": counts_padding}
    ours, torchs = (kind(kernel, stride, **args) for kind in (layers.OctaveAvgPool2d, nn.AvgPool2d))
    x, half = images(2, 3, *size), tuple(-(-side // 2) for side in size)
    y = ours(OctaveTensor(x, images(2, 1, *half, seed=1)))
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(y.high, torchs(x))
    assert torch.equal(y.low, torchs(images(2, 1, *half, seed=1)))
    program = torch.export.export(ours, (x,))
    (node,) = [node for node in program.graph.nodes if "avg_pool2d" in str(node.target)]
    assert all(k <= side for k, side in zip(node.args[1], size, strict=True))


REDUCTIONS: dict[str, Any] = {
    "avg": lambda x: [x.mean((2, 3))],
    "max": lambda x: [x.amax((2, 3))],
    "avgmax": lambda x: [(x.mean((2, 3)) + x.amax((2, 3))) / 2],
    "catavgmax": lambda x: [x.mean((2, 3)), x.amax((2, 3))],
}


def reduced(x: OctaveTensor, kind: str) -> Tensor:
    """All channels of one reduction after another, in the order of the channels."""
    maps = Maps(x.high, x.low, x.groups)
    order = torch.tensor([index for at in maps.places for index in at]).argsort()
    parts = zip(REDUCTIONS[kind](x.high), REDUCTIONS[kind](x.low), strict=True)
    return torch.cat([torch.cat(pair, 1)[:, order] for pair in parts], 1)


@pytest.mark.parametrize("prefix", ["", "fast"])
@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize(("low", "groups"), [(1, 1), (3, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("flatten", [False, True])
def test_global_pooling_keeps_channels_in_order(
    kind: str, prefix: str, low: int, groups: int, flatten: bool
) -> None:
    x = random_parts(low, groups)
    expected = reduced(x, kind) if low < 4 else torch.cat(REDUCTIONS[kind](x.low), 1)
    y = layers.OctaveGlobalPool2d(pool_type=prefix + kind, flatten=flatten)(x)
    assert y.dim() == (2 if flatten else 4)
    torch.testing.assert_close(y.flatten(1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ours", "torchs"), PAIRS, ids=str)
def test_plain_tensors_are_torchs_own(ours: nn.Module, torchs: nn.Module) -> None:
    x = images(2, CHANNELS, *SIZE)
    assert torch.equal(ours.float()(x.clone()), torchs(x.clone()))
