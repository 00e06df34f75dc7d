"""What autograd keeps, against formulas: two maps per convolution and norm that are activated."""

import copy

import pytest
import timm
import torch
from torch import nn

import octnas.nn
from octnas import octavize
from octnas.measure.memory import kept_for_backward
from tests.nn.reference import images

assert octnas.nn is not None  # registers thumbnail_resnet

BATCH, SIDE = 2, 32
WIDTHS = (16, 32, 64)
STAGES = ("layer1", "layer2", "layer3")


def thumbnail() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("thumbnail_resnet").train()
    return model


def conv(channels: int, side: int, maps: int, share: float = 1.0) -> int:
    """Bytes of ``maps`` maps, and of the mean and deviation that the norm keeps."""
    return round(4 * (maps * BATCH * channels * side**2 * share + 2 * channels))


def expected(first_stage: float = 1.0) -> dict[str, int]:
    """By hand, for a stem and three stages of one basic block.

    A convolution keeps its input and a norm its own, which is the convolution's output; ReLU works
    in place and keeps what it gives to the next convolution. A shortcut's norm is followed by none.
    """
    stages = {"layer1": 2 * conv(WIDTHS[0], SIDE, 2, first_stage)}
    for index in (1, 2):
        width, side = WIDTHS[index], SIDE // 2**index
        stages[STAGES[index]] = 2 * conv(width, side, 2) + conv(width, side, 1)
    image = 4 * BATCH * 3 * SIDE**2
    head = 4 * BATCH * WIDTHS[-1]
    return {"stem": image + conv(WIDTHS[0], SIDE, 2), **stages, "head": head}


@pytest.mark.parametrize("octave", [False, True])
def test_without_low_channels(octave: bool) -> None:
    model = thumbnail()
    if octave:
        octavize(model, 0.0)
    assert kept_for_backward(model, images(BATCH, 3, SIDE, SIDE)) == expected()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_pooled_maps_are_not_kept(alpha: float) -> None:
    """A low channel is a quarter; what is pooled from the high ones is nowhere counted."""
    model = octavize(thumbnail(), {"layer1*": alpha})
    found = kept_for_backward(model, images(BATCH, 3, SIDE, SIDE))
    assert found == expected(first_stage=1 - 0.75 * alpha)


def test_the_batch_scales_all_but_the_statistics() -> None:
    model = octavize(thumbnail(), 0.5)
    one, two, four = (
        sum(kept_for_backward(model, images(n, 3, SIDE, SIDE)).values()) for n in (1, 2, 4)
    )
    assert four - two == 2 * (two - one)


def test_nothing_stays_behind() -> None:
    """No hook, no gradient, and the same answer twice, also where gradients are switched off."""
    model, x = octavize(thumbnail(), 0.5), images(BATCH, 3, SIDE, SIDE)
    hooks = [list(module._forward_pre_hooks) for module in model.modules()]
    with torch.no_grad():
        first = kept_for_backward(model, x)
    assert kept_for_backward(model, x) == first
    # `octavize` has one of its own.
    assert [list(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture(scope="module")
def resnet50() -> tuple[nn.Module, dict[str, int]]:
    torch.manual_seed(0)
    model = timm.create_model("resnet50").train()
    return model, kept_for_backward(copy.deepcopy(model), images(2, 3, 224, 224))


def stages_only(kept: dict[str, int]) -> int:
    return sum(kept[stage] for stage in STAGES)


@pytest.mark.parametrize(
    ("alpha", "whole", "stages"), [(0.5, 0.71, 0.65), (0.25, 0.88, 0.85), (0.125, 1.0, 1.0)]
)
def test_resnet50_keeps_less(
    resnet50: tuple[nn.Module, dict[str, int]], alpha: float, whole: float, stages: float
) -> None:
    """A share 1 − .75 α of every map in stages 1 to 3, and little beside: at 224, batch 2."""
    vanilla, base = resnet50
    model = octavize(copy.deepcopy(vanilla), alpha)
    found = kept_for_backward(model, images(2, 3, 224, 224))
    assert list(found) == list(base) == ["stem", *STAGES, "layer4", "head"]
    assert found["stem"] == base["stem"]
    assert found["layer4"] == base["layer4"]
    assert stages_only(found) / stages_only(base) < stages
    assert stages_only(found) / stages_only(base) >= 1 - 0.75 * alpha
    assert sum(found.values()) / sum(base.values()) < whole
