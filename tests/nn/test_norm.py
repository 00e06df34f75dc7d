from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octnas.nn.norm import OctaveBatchNorm2d
from octnas.nn.octave import OctaveTensor
from tests.nn.reference import assert_sizeable, images, randomise

CHANNELS = 5
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "momentum": {"momentum": 0.3, "eps": 0.1},
    "cumulative": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "not affine": {"affine": False},
}


def copied(source: nn.BatchNorm2d, channels: slice, kind: dict[str, Any]) -> nn.BatchNorm2d:
    """torch's batch norm of some of the channels."""
    count = len(range(CHANNELS)[channels])
    twin = nn.BatchNorm2d(count, **kind).double()
    state = {
        name: value[channels] if value.dim() else value
        for name, value in source.state_dict().items()
    }
    twin.load_state_dict(state)
    return twin.train(source.training)


def batch(low: int, seed: int) -> tuple[Tensor, Tensor]:
    high_part = images(3, CHANNELS - low, 6, 7, seed=seed, dtype=torch.float64) * 2 + 1
    low_part = images(3, low, 3, 4, seed=seed + 50, dtype=torch.float64) * 3 - 1
    return high_part.requires_grad_(), low_part.requires_grad_()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("low", [1, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_two_batch_norms(kind: str, low: int, training: bool) -> None:
    norm = OctaveBatchNorm2d(CHANNELS, **KINDS[kind]).double()
    if norm.affine and norm.track_running_stats:
        randomise(norm)
    norm.train(training)
    split = CHANNELS - low
    twins = [copied(norm, part, KINDS[kind]) for part in (slice(split), slice(split, None))]
    for step in range(3):
        parts = batch(low, seed=step)
        y = norm(OctaveTensor(*parts))
        expected = [twin(x) if x.shape[1] else x for twin, x in zip(twins, parts, strict=True)]
        total = torch.zeros(())
        for found, wanted in zip((y.high, y.low), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
            if wanted.shape[1]:
                assert_sizeable(wanted)
            total = total + ((found - wanted) * 3 + found**3).sum()
        leaves = [*(x for x in parts if x.numel()), *norm.parameters()]
        cubes = sum(((wanted**3).sum() for wanted in expected), torch.zeros(()))
        twin_leaves = [x for x in parts if x.numel()]
        gradients = torch.autograd.grad(total, leaves, retain_graph=True)
        for found, wanted in zip(gradients, torch.autograd.grad(cubes, twin_leaves, retain_graph=True), strict=False):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
            assert_sizeable(found)
        check_parameter_gradients(norm, twins, (y.high**3).sum() + (y.low**3).sum(), cubes)
        check_statistics(norm, twins)


def check_parameter_gradients(
    norm: nn.BatchNorm2d, twins: list[nn.BatchNorm2d], found: Tensor, wanted: Tensor
) -> None:
    if not norm.affine:
        return
    own = torch.autograd.grad(found, [norm.weight, norm.bias])
    used = [twin for twin in twins if twin.num_features]
    others = torch.autograd.grad(wanted, [p for t in used for p in (t.weight, t.bias)])
    for index, gradient in enumerate(own):
        torch.testing.assert_close(gradient, torch.cat(others[index::2]), rtol=1e-9, atol=1e-9)


def check_statistics(norm: nn.BatchNorm2d, twins: list[nn.BatchNorm2d]) -> None:
    if norm.running_mean is None:
        assert norm.running_var is None
        return
    used = [twin for twin in twins if twin.num_features]
    for name in ("running_mean", "running_var"):
        wanted = torch.cat([getattr(twin, name) for twin in used])
        torch.testing.assert_close(getattr(norm, name), wanted, rtol=1e-12, atol=1e-12)
    assert {int(twin.num_batches_tracked) for twin in used} == {int(norm.num_batches_tracked)}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_tensors_are_torchs_own(training: bool) -> None:
    norm = randomise(OctaveBatchNorm2d(CHANNELS).double()).train(training)
    twin = copied(norm, slice(None), {})
    x = images(3, CHANNELS, 6, 7, dtype=torch.float64)
    expected = twin(x)
    assert_sizeable(expected)
    assert torch.equal(norm(x), expected)
    assert torch.equal(norm.running_mean, twin.running_mean)


def test_statistics_can_be_frozen_in_training() -> None:
    """As torch's batch norm: with tracking switched off, buffers stay and batches count."""
    norm = randomise(OctaveBatchNorm2d(CHANNELS).double()).train()
    twins = [copied(norm, part, {}) for part in (slice(3), slice(3, None))]
    for module in (norm, *twins):
        module.track_running_stats = False
    parts = batch(2, seed=0)
    y = norm(OctaveTensor(*parts))
    for found, twin, x in zip((y.high, y.low), twins, parts, strict=True):
        torch.testing.assert_close(found, twin(x), rtol=1e-12, atol=1e-12)
    check_statistics(norm, twins)


def test_keys_are_torchs() -> None:
    assert list(OctaveBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
