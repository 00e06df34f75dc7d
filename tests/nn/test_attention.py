"""Channel attention over both resolutions: one gate per channel, in timm's order of channels."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import EcaModule, EffectiveSEModule, SEModule
from torch import Tensor, nn

from octnas.nn.attention import OctaveEca, OctaveEffectiveSE, OctaveSE
from octnas.nn.octave import OctaveTensor
from tests.nn.convs import features, octave
from tests.nn.reference import assert_sizeable, images, randomise
from tests.nn.reference_network import ReferenceResNet

CHANNELS = 12
MODULES: dict[str, tuple[type[nn.Module], Callable[[], nn.Module]]] = {
    "SE": (OctaveSE, lambda: SEModule(CHANNELS, rd_channels=4)),
    "SE, maxima": (OctaveSE, lambda: SEModule(CHANNELS, rd_channels=4, add_maxpool=True)),
    "SE, normalised": (
        OctaveSE,
        lambda: SEModule(CHANNELS, rd_channels=4, norm_layer=nn.BatchNorm2d, act_layer="silu"),
    ),
    "ESE": (OctaveEffectiveSE, lambda: EffectiveSEModule(CHANNELS)),
    "ESE, maxima": (OctaveEffectiveSE, lambda: EffectiveSEModule(CHANNELS, add_maxpool=True)),
    "ECA": (OctaveEca, lambda: EcaModule(kernel_size=3)),
    "ECA, wide": (OctaveEca, lambda: EcaModule(kernel_size=5, gate_layer="hard_sigmoid")),
    "ECA, MLP": (OctaveEca, lambda: EcaModule(CHANNELS, use_mlp=True, rd_channels=3)),
}
SPLITS = [(1, 1), (5, 1), (12, 1), (4, 2), (4, 4), (8, 4), (12, 4)]


def make(kind: str) -> tuple[nn.Module, nn.Module]:
    """timm's module, and octnas's with the same weights."""
    swapped, build = MODULES[kind]
    torch.manual_seed(0)
    plain = randomise(build()).double().eval()
    torch.manual_seed(0)
    ours = randomise(build()).double().eval()
    ours.__class__ = swapped
    return plain, ours


@pytest.mark.parametrize("size", [(7, 10), (8, 8), (1, 1)], ids=str)
@pytest.mark.parametrize(("low", "groups"), SPLITS)
@pytest.mark.parametrize("kind", MODULES)
def test_gates_are_those_of_the_reference(
    kind: str, low: int, groups: int, size: tuple[int, int]
) -> None:
    plain, ours = make(kind)
    x = features(CHANNELS, low, size, groups)
    expected, y = ReferenceResNet.attend(x, plain), ours(octave(x))
    assert isinstance(y, OctaveTensor)
    assert y.groups == groups
    results = []
    for outputs, module in ((y, ours), (expected, plain)):
        loss = (outputs.high**3).sum() + (outputs.low**3).sum()
        leaves = [part for part in (x.high, x.low, *module.parameters()) if part.numel()]
        results.append([outputs.high, outputs.low, *torch.autograd.grad(loss, leaves)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert wanted.numel() == 0 or wanted.abs().max() > 1e-4


@pytest.mark.parametrize("kind", MODULES)
def test_plain_tensors_are_timms_own(kind: str) -> None:
    plain, ours = make(kind)
    x = images(2, CHANNELS, 7, 6, dtype=torch.float64)
    expected = plain(x)
    assert_sizeable(expected)
    assert torch.equal(ours(x), expected)


@pytest.mark.parametrize("kind", MODULES)
def test_the_split_changes_no_gate_of_constant_maps(kind: str) -> None:
    """Where every channel is constant, its means are the same at both resolutions."""
    plain, ours = make(kind)
    values = images(2, CHANNELS, 1, 1, dtype=torch.float64)
    expected = plain(values.expand(2, CHANNELS, 8, 8))[:, :, 0, 0]
    at = [[0, 1, 3, 4, 6, 7, 9, 10], [2, 5, 8, 11]]  # one low channel in each of four groups
    y = ours(
        OctaveTensor(values[:, at[0]].expand(2, 8, 8, 8), values[:, at[1]].expand(2, 4, 4, 4), 4)
    )
    found = torch.empty_like(expected)
    found[:, at[0]], found[:, at[1]] = y.high[:, :, 0, 0], y.low[:, :, 0, 0]
    assert_sizeable(expected)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["SE", "SE, maxima", "ECA", "ECA, MLP"])
def test_a_low_channel_can_close_a_high_one(kind: str) -> None:
    """Squeezing mixes the channels of both parts: a gate of one depends on those of the other."""
    _, ours = make(kind)
    x = features(CHANNELS, 6, (8, 8))

    def gates(low: Tensor) -> Tensor:
        y = ours(OctaveTensor(x.high, low))
        return (y.high / x.high)[:, :, 0, 0]

    moved = (gates(x.low + 3) - gates(x.low)).abs().amax(0)
    assert moved[-1] > 1e-4  # of the last high channel, a neighbour of the first low one
    if kind == "ECA":
        assert moved[:-1].max() < 1e-12
