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
    "neither": {"affine": False, "track_running_stats": False},
}


def make(kind: str = "default") -> OctaveBatchNorm2d:
    norm = OctaveBatchNorm2d(CHANNELS, **KINDS[kind]).double()
    return randomise(norm)  # type: ignore[return-value]


def twins(norm: nn.BatchNorm2d, low: int, kind: str = "default") -> list[nn.BatchNorm2d]:
    """torch's batch norms of the high and of the low channels; one alone if none is high."""
    made = []
    for part in (slice(CHANNELS - low), slice(CHANNELS - low, None)):
        twin = nn.BatchNorm2d(len(range(CHANNELS)[part]), **KINDS[kind]).double()
        state = {key: v[part] if v.dim() else v for key, v in norm.state_dict().items()}
        twin.load_state_dict(state)
        made.append(twin.train(norm.training))
    return [twin for twin in made if twin.num_features]


def batch(low: int, seed: int) -> list[Tensor]:
    """A high and a low part, with different mean and spread."""
    high_part = images(3, CHANNELS - low, 6, 7, seed=seed, dtype=torch.float64) * 2 + 1
    low_part = images(3, low, 3, 4, seed=seed + 50, dtype=torch.float64) * 3 - 1
    return [high_part.requires_grad_(), low_part.requires_grad_()]


def cubes(outputs: list[Tensor]) -> Tensor:
    """Something to derive; the sum alone would have no gradient."""
    return sum(((y**3).sum() for y in outputs), torch.zeros(()))


def check_equal(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert_sizeable(wanted)


def check_statistics(norm: nn.BatchNorm2d, others: list[nn.BatchNorm2d]) -> None:
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is None:
            assert not norm.track_running_stats
            continue
        check_equal(getattr(norm, name), torch.cat([getattr(twin, name) for twin in others]))
        assert {int(twin.num_batches_tracked) for twin in others} == {int(norm.num_batches_tracked)}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("low", [1, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_two_batch_norms(kind: str, low: int, training: bool) -> None:
    norm = make(kind).train(training)
    others = twins(norm, low, kind)
    for step in range(3):
        parts = batch(low, seed=step)
        y = norm(OctaveTensor(*parts))
        outputs = [part for part in (y.high, y.low) if part.numel()]
        inputs = [part for part in parts if part.numel()]
        expected = [twin(x) for twin, x in zip(others, inputs, strict=True)]
        for found, wanted in zip(outputs, expected, strict=True):
            check_equal(found, wanted)
        check_statistics(norm, others)
        gradients = torch.autograd.grad(cubes(outputs), [*inputs, *norm.parameters()])
        parameters = [p for twin in others for p in twin.parameters()]
        wanted_gradients = torch.autograd.grad(cubes(expected), [*inputs, *parameters])
        count = len(inputs)
        for found, wanted in zip(gradients[:count], wanted_gradients[:count], strict=True):
            check_equal(found, wanted)
        for index, found in enumerate(gradients[count:]):
            check_equal(found, torch.cat(wanted_gradients[count + index :: 2]))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_tensors_are_torchs_own(training: bool) -> None:
    norm = make().train(training)
    twin = nn.BatchNorm2d(CHANNELS).double().train(training)
    twin.load_state_dict(norm.state_dict())
    x = images(3, CHANNELS, 6, 7, dtype=torch.float64)
    expected = twin(x)
    assert_sizeable(expected)
    assert torch.equal(norm(x), expected)
    assert torch.equal(norm.running_mean, twin.running_mean)


def test_statistics_can_be_frozen_in_training() -> None:
    """As torch's batch norm with tracking switched off later: the buffers stay."""
    norm = make()
    others = twins(norm, low=2)
    for module in (norm, *others):
        module.track_running_stats = False
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    parts = batch(2, seed=0)
    y = norm(OctaveTensor(*parts))
    for found, twin, x in zip((y.high, y.low), others, parts, strict=True):
        check_equal(found, twin(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_keys_are_torchs() -> None:
    assert list(OctaveBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
