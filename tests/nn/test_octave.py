import copy
import itertools
import operator
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octnas.nn.layers import OctaveAlign
from octnas.nn.octave import Features, OctaveTensor, pool, resplit, upsample
from tests.nn import reference
from tests.nn.reference import Maps, images

SIZES = [(8, 8), (7, 7), (13, 9), (1, 1), (1, 6)]
CHANNELS = 6  # of which 0 to 6 are low


def octave(low: int, size: tuple[int, int] = (7, 6), seed: int = 0) -> OctaveTensor:
    """Of `CHANNELS` channels; with none low the octave tensor's low part is empty."""
    half = tuple((side + 1) // 2 for side in size)
    return OctaveTensor(
        images(2, CHANNELS - low, *size, seed=seed, dtype=torch.float64),
        images(2, low, *half, seed=seed + 1, dtype=torch.float64),
    )


def maps(x: Features) -> Maps:
    return Maps(x.high, x.low) if isinstance(x, OctaveTensor) else reference.plain(x)


@pytest.mark.parametrize("size", SIZES)
def test_pool_and_upsample_are_those_of_slow_loops(size: tuple[int, int]) -> None:
    x = images(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pool(x), reference.pool(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(upsample(pool(x), like=x), reference.upsample(pool(x), size))


@pytest.mark.parametrize("size", SIZES)
def test_pooling_kernels_are_no_larger_than_the_map(size: tuple[int, int]) -> None:
    """Exported they are constants, and engines refuse larger ones."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pool(x)

    x = images(2, 3, *size)
    program = torch.export.export(Pool(), (x,))
    (node,) = [node for node in program.graph.nodes if "avg_pool2d" in str(node.target)]
    assert node.args[1] == [min(2, side) for side in size]
    assert torch.equal(program.module()(x), pool(x))


@pytest.mark.parametrize("size", SIZES)
def test_constant_maps_stay_constant(size: tuple[int, int]) -> None:
    """Padding is not counted, and cropping takes the right side."""
    x = torch.full((1, 2, *size), 3.0)
    assert torch.equal(pool(x), torch.full_like(pool(x), 3.0))
    assert torch.equal(upsample(pool(x), like=x), x)


@pytest.mark.parametrize(("have", "want"), list(itertools.product(range(7), repeat=2)))
def test_resplit_keeps_every_channel_in_its_place(have: int, want: int) -> None:
    x = octave(have) if have else octave(0).high
    align = OctaveAlign(CHANNELS, "layer1")
    align.low_channels = want
    expected = reference.resplit(maps(x), want)
    for result in (resplit(x, want), align(x)):
        found = maps(result)
        assert isinstance(result, OctaveTensor) == (want > 0)
        assert found.high.shape == (2, CHANNELS - want, 7, 6)
        torch.testing.assert_close(found.high, expected.high, rtol=1e-12, atol=1e-12)
        if want:
            assert found.low.shape == (2, want, 4, 3)
            torch.testing.assert_close(found.low, expected.low, rtol=1e-12, atol=1e-12)
    assert not list(align.parameters())
    assert not align.state_dict()


@pytest.mark.parametrize("low", [1, 3, 6])
def test_sum_is_that_of_the_parts(low: int) -> None:
    a, b = octave(low, seed=1), octave(low, seed=3)
    total = a + b
    assert torch.equal(total.high, a.high + b.high)
    assert torch.equal(total.low, a.low + b.low)


@pytest.mark.parametrize("low", [1, 3, 6])
def test_sum_in_place_keeps_no_second_copy(low: int) -> None:
    a, b = octave(low, seed=1), octave(low, seed=3)
    expected, high, before, other = a + b, a.high, a, copy.deepcopy(b)
    a += b
    assert a is before
    assert a.high is high
    assert torch.equal(a.high, expected.high)
    assert torch.equal(a.low, expected.low)
    assert torch.equal(b.low, other.low)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (octave(2), octave(3)),
        (octave(2), octave(2, (5, 6))),
        (octave(2), OctaveTensor(octave(5).high, octave(2).low)),  # would broadcast
        (octave(2), octave(0).high),
        (octave(0).high, octave(2)),
    ],
)
@pytest.mark.parametrize("add", [operator.add, operator.iadd])
def test_different_splits_cannot_be_added(left: Features, right: Features, add: Any) -> None:
    kept = copy.deepcopy(maps(left))
    with pytest.raises(ValueError, match="cannot add feature maps of different splits") as caught:
        add(left, right)
    assert "\n" not in str(caught.value)
    assert torch.equal(maps(left).high, kept.high)
    assert torch.equal(maps(left).low, kept.low)


def test_compares_by_identity() -> None:
    """As tensors in a set do; comparing values would ask for the truth of a tensor."""
    a, b = octave(2), octave(2)
    assert a == a
    assert a != b
    assert len({a, b}) == 2


def test_copies() -> None:
    a = octave(2)
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert torch.equal(a.high, b.high)
        assert torch.equal(a.low, b.low)
        assert b.low_channels == 2
