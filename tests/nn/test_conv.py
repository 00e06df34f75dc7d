"""Training in channels-last memory where oneDNN's kernels of AVX2 spoil theirs.

In a process of its own: what they spoil is the heap, and they are chosen as it begins.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octnas.errors import SettingError, UnsupportedModelError
from octnas.nn.conv import OctaveConv2d, to_channels_last
from octnas.nn.layers import OctaveReLU
from octnas.nn.octave import OctaveTensor
from tests.nn import convs
from tests.nn.convs import expected_of, octave, parts
from tests.nn.reference import Maps, assert_sizeable

SHARES = (0.0, 0.25, 0.5, 1.0)
SIZES = [(8, 8), (7, 7), (13, 9)]
IN, OUT = 8, 12

# name: arguments of the convolution, whether the reference pools for a stride that is not vanilla,
# and whether it does for one that is.
MODES = {
    "stride 1": {"stride": 1},
    "stride 2, paper": {"stride": 2, "stride_mode": "paper"},
    "stride 2, timm": {"stride": 2, "stride_mode": "timm"},
}


def features(share: float, size: tuple[int, int]) -> Maps:
    return convs.features(IN, int(share * IN), size)


def make(**kwargs: Any) -> OctaveConv2d:
    kernel, dilation = kwargs.get("kernel_size", 3), kwargs.get("dilation", 1)
    defaults = {"kernel_size": 3, "padding": dilation * (kernel - 1) // 2, "bias": True}
    torch.manual_seed(0)
    return OctaveConv2d(IN, OUT, **{**defaults, **kwargs}).double()  # type: ignore[arg-type]


def check(conv: OctaveConv2d, x: Maps, *, pooled: bool) -> None:
    convs.check(conv, x, expected_of(conv, x, pooled=pooled))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("alpha_in", "alpha_out"), list(itertools.product(SHARES, SHARES)))
def test_equals_four_convolutions(
    alpha_in: float, alpha_out: float, mode: str, size: tuple[int, int]
) -> None:
    conv = make(alpha=alpha_out, **MODES[mode])
    vanilla = alpha_in == alpha_out == 0
    check(conv, features(alpha_in, size), pooled=not (vanilla and conv.stride_mode == "timm"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"bias": False},
        {"kernel_size": 1},
        {"kernel_size": 1, "bias": False, "stride": 2},
        {"dilation": 2, "kernel_size": 3},
        {"kernel_size": 7, "stride": 2, "stride_mode": "paper"},
        {"channel_multiple": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("alpha_in", "alpha_out"), [(0, 0.5), (0.5, 0.5), (0.25, 1), (1, 0.5), (1, 1), (0.5, 0)]
)
def test_other_convolutions_too(alpha_in: float, alpha_out: float, kwargs: dict[str, Any]) -> None:
    check(make(alpha=alpha_out, **kwargs), features(alpha_in, (13, 9)), pooled=True)


@pytest.mark.parametrize("size", [*SIZES, (9, 10), (11, 12)], ids=str)
@pytest.mark.parametrize("alpha", SHARES)
@pytest.mark.parametrize("stride_mode", ["paper", "timm"])
def test_stem_strides_in_both_parts(alpha: float, size: tuple[int, int], stride_mode: str) -> None:
    conv = make(alpha=alpha, kernel_size=7, stride=2, strided=True, stride_mode=stride_mode)
    check(conv, features(0.0, size), pooled=False)


@pytest.mark.parametrize("stride", [1, 2])
def test_vanilla_is_torch_bit_for_bit(stride: int) -> None:
    conv = make(stride=stride)
    x = features(0, (13, 9)).high
    expected = nn.Conv2d.forward(conv, x)
    assert_sizeable(expected)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(("alpha", "low"), [(0, 0), (0.3, 3), (0.34, 4), (0.999, 11), (1, 12)])
def test_low_channels_are_rounded_down(alpha: float, low: int) -> None:
    y = make(alpha=alpha)(features(0.5, (8, 8)).high.repeat(1, 2, 1, 1))
    assert (y.low_channels if isinstance(y, OctaveTensor) else 0) == low


@pytest.mark.parametrize(("alpha_in", "alpha_out"), list(itertools.product(SHARES, SHARES)))
def test_output_may_be_changed_in_place(alpha_in: float, alpha_out: float) -> None:
    """timm's activations are in place, and its blocks add in place."""
    x, conv, relu = features(alpha_in, (7, 7)), make(alpha=alpha_out, bias=False), OctaveReLU(True)
    inner = OctaveReLU(inplace=False)(octave(x))
    y = conv(inner)
    ones = [torch.ones_like(part) for part in parts(y)]
    y += ones[0] if isinstance(y, Tensor) else OctaveTensor(*ones)
    torch.stack([part.sum() for part in parts(relu(y))]).sum().backward()
    assert conv.weight.grad is not None
    assert_sizeable(conv.weight.grad)


def test_state_is_that_of_torch() -> None:
    torch.manual_seed(0)
    twin = nn.Conv2d(IN, OUT, 3, padding=1).double()
    conv = make(alpha=0.5)
    assert list(conv.state_dict()) == list(twin.state_dict())
    for name, value in conv.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"alpha": 1.1},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"channel_multiple": 0},
        {"channel_multiple": 1.5},
        {"channel_multiple": "2"},
        {"stride_mode": "fast"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(kwargs))):
        make(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"groups": 2, "kernel_size": 2},
        {"groups": 2, "padding": 0},
        {"stride": 3},
        {"stride": (1, 2)},
        {"padding": 0},
        {"padding": "same"},
        {"kernel_size": 2},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_convolutions_without_two_resolutions_are_refused(kwargs: dict[str, Any]) -> None:
    """Else the parts' sizes would not fit, or the setting would be ignored."""
    with pytest.raises(UnsupportedModelError, match="found"):
        make(**kwargs)


@pytest.mark.parametrize(
    "setting",
    [{"channel_multiple": 0}, {"channel_multiple": 1.5}, {"stride_mode": "fast"}],
    ids=str,
)
def test_a_refused_convolution_stays_what_it_was(setting: dict[str, Any]) -> None:
    conv = nn.Conv2d(IN, OUT, 3, padding=1)
    with pytest.raises(SettingError):
        OctaveConv2d.from_conv(conv, **setting)
    assert type(conv) is nn.Conv2d


def test_a_strided_stem_refuses_octave_inputs() -> None:
    conv = make(alpha=0.5, stride=2, strided=True)
    x = features(0.5, (8, 8))
    with pytest.raises(ValueError, match="strided"):
        conv(OctaveTensor(x.high, x.low))


@pytest.mark.parametrize(
    "kwargs", [{"alpha": 0.5}, {"alpha": 1}, {"stride": 2, "stride_mode": "paper"}], ids=str
)
def test_images_without_a_batch_are_refused(kwargs: dict[str, Any]) -> None:
    """Their height would be taken for channels."""
    conv, x = make(**kwargs), features(0.0, (8, 8)).high
    with pytest.raises(ValueError, match=r"takes batches \(N, C, H, W\), found \(8, 8, 8\)"):
        conv(x[0])


def test_octave_images_without_a_batch_are_refused() -> None:
    x = features(0.5, (8, 8))
    for conv in (make(alpha=0.5), make()):
        with pytest.raises(ValueError, match=r"found \(4, 8, 8\)"):
            conv(OctaveTensor(x.high[0], x.low[0]))


def test_depthwise_images_without_a_batch_are_refused() -> None:
    conv = OctaveConv2d(8, 8, 3, padding=1, groups=8, alpha=0.5).double()
    with pytest.raises(ValueError, match=r"found \(8, 8, 8\)"):
        conv(features(0.0, (8, 8)).high[0])


def test_vanilla_takes_images_without_a_batch_as_torch_does() -> None:
    conv, x = make(stride=2), features(0.0, (13, 9)).high
    assert torch.equal(conv(x[0]), nn.Conv2d.forward(conv, x[0]))


PROGRAM = """
import sys, torch, torch.nn.functional as F
from octnas.nn.backbone import create_backbone
from octnas.nn.conv import to_channels_last
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build

torch.set_num_threads(1)
torch.manual_seed(0)
size, args = (3, 16, 16), {"layers": [1, 1, 1], "channels": [4, 8, 8], "num_classes": 2}
space = search_space("thumbnail_resnet", size, (0, 0.5), backbone_args=args, stride_mode="timm")
labels = torch.tensor([0, 1, 0, 1, 0, 1])

def gradients(network, images):
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    return [weight.grad.clone() for weight in network.parameters()]

for what in sys.argv[1:]:
    if what == "timm":
        network = create_backbone("thumbnail_resnet", args)
    else:
        network = build(space.uniform(float(what)), seed=0)
    network.train()
    images = torch.randn(6, *size)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = gradients(network, images)
    assert max(float(one.abs().max()) for one in expected) > 1e-3
    to_channels_last(network)
    images = images.to(memory_format=torch.channels_last)
    for _ in range(100):
        found = gradients(network, images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
"""


@pytest.mark.parametrize("what", ["timm 0.5", pytest.param("0", marks=pytest.mark.slow)])
def test_gradients_are_sound_with_few_channels(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *what.split()],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_parts_of_kernels_have_gradients_in_bfloat16() -> None:
    """One channel of four is high: its kernel is what torch's own gradient refuses as it is."""
    torch.manual_seed(0)
    conv = OctaveConv2d(4, 4, 3, padding=1, alpha=0.75)
    to_channels_last(conv)
    x = torch.randn(6, 4, 8, 8).to(memory_format=torch.channels_last)

    def gradient(enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        total = y.high.float().square().sum() + y.low.float().square().sum()
        (found,) = torch.autograd.grad(total, [conv.weight])
        return found

    wanted = gradient(enabled=False)
    assert float(wanted.norm()) > 1
    assert (gradient(enabled=True) - wanted).norm() / wanted.norm() < 0.03
