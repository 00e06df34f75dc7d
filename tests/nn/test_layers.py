import pytest
import torch
from torch import nn

from octnas.nn.layers import OctaveGlobalPool2d, OctaveMaxPool2d, OctaveReLU
from octnas.nn.octave import Features, OctaveTensor
from tests.nn.reference import images

SIZE = (7, 10)
HALF = (4, 5)


def octave(low: int, channels: int = 4) -> OctaveTensor:
    return OctaveTensor(images(2, channels - low, *SIZE, seed=1), images(2, low, *HALF, seed=2))


@pytest.mark.parametrize("low", [1, 3, 4])
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_acts_on_both_parts(low: int, inplace: bool) -> None:
    x = octave(low)
    expected = x.high.clamp(min=0), x.low.clamp(min=0)
    y = OctaveReLU(inplace)(x)
    assert (y.low is x.low) == inplace
    assert torch.equal(y.high, expected[0])
    assert torch.equal(y.low, expected[1])


@pytest.mark.parametrize("low", [1, 3, 4])
def test_max_pooling_keeps_the_parts_sizes_in_step(low: int) -> None:
    x = octave(low)
    plain = nn.MaxPool2d(3, 2, 1)
    y = OctaveMaxPool2d(3, 2, 1)(x)
    assert torch.equal(y.low, plain(x.low))
    assert y.high.shape == (2, 4 - low, 4, 5)
    assert y.low.shape == (2, low, 2, 3)
    if low < 4:
        assert torch.equal(y.high, plain(x.high))


@pytest.mark.parametrize(("kind", "reduce"), [("avg", torch.mean), ("max", torch.amax)])
@pytest.mark.parametrize("low", [1, 3, 4])
@pytest.mark.parametrize("flatten", [False, True])
def test_global_pooling_keeps_channels_in_order(
    kind: str, reduce: object, low: int, flatten: bool
) -> None:
    x = octave(low)
    channels = [*x.high.unbind(1), *x.low.unbind(1)]
    expected = torch.stack([reduce(channel, (1, 2)) for channel in channels], 1)  # type: ignore[operator]
    y = OctaveGlobalPool2d(pool_type=kind, flatten=flatten)(x)
    assert y.shape == ((2, 4) if flatten else (2, 4, 1, 1))
    torch.testing.assert_close(y.flatten(1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (OctaveReLU(), nn.ReLU()),
        (OctaveMaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
        (
            OctaveGlobalPool2d(pool_type="avg", flatten=True),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
    ],
)
def test_plain_tensors_are_torchs_own(ours: nn.Module, torchs: nn.Module) -> None:
    x: Features = octave(1).high
    assert torch.equal(ours(x), torchs(x))
