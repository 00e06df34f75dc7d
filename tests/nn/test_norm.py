from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from octnas.nn.layers import OctaveReLU
from octnas.nn.norm import OctaveBatchNorm2d, OctaveBatchNormAct2d
from octnas.nn.octave import OctaveTensor
from tests.nn.reference import assert_sizeable, images, places, randomise

CHANNELS = 12
# Low channels and groups; in four groups of three, one or all low of each.
SPLITS = [(1, 1), (7, 1), (12, 1), (6, 2), (4, 4), (8, 4), (12, 4), (6, 6)]
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


def twins(
    norm: nn.BatchNorm2d, low: int, kind: str = "default", groups: int = 1
) -> list[nn.BatchNorm2d]:
    """torch's batch norms of the high and of the low channels; one alone if none is high."""
    made = []
    for at in places(CHANNELS, low, groups):
        twin = nn.BatchNorm2d(len(at), **KINDS[kind]).double()
        state = {key: v[at] if v.dim() else v for key, v in norm.state_dict().items()}
        twin.load_state_dict(state)
        made.append(twin.train(norm.training))
    return [twin for twin in made if twin.num_features]


def joined(values: list[Tensor], low: int, groups: int) -> Tensor:
    """One value per channel in their order, from those of the parts."""
    at = [index for part in places(CHANNELS, low, groups) for index in part]
    return torch.cat(values)[torch.tensor(at).argsort()]


def batch(low: int, seed: int, size: tuple[int, int] = (6, 7)) -> list[Tensor]:
    """A high and a low part, with different mean and spread."""
    half = tuple((side + 1) // 2 for side in size)
    high_part = images(3, CHANNELS - low, *size, seed=seed, dtype=torch.float64) * 2 + 1
    low_part = images(3, low, *half, seed=seed + 50, dtype=torch.float64) * 3 - 1
    return [high_part.requires_grad_(), low_part.requires_grad_()]


def cubes(outputs: list[Tensor]) -> Tensor:
    """Something to derive; the sum alone would have no gradient."""
    return sum(((y**3).sum() for y in outputs), torch.zeros(()))


def check_equal(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert_sizeable(wanted)


def check_statistics(
    norm: nn.BatchNorm2d, others: list[nn.BatchNorm2d], low: int, groups: int
) -> None:
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is None:
            assert not norm.track_running_stats
            continue
        wanted = joined([getattr(twin, name) for twin in others], low, groups)
        check_equal(getattr(norm, name), wanted)
        assert {int(twin.num_batches_tracked) for twin in others} == {int(norm.num_batches_tracked)}


def check_step(
    norm: nn.BatchNorm2d, others: list[nn.BatchNorm2d], parts: list[Tensor], groups: int
) -> None:
    """One batch: outputs, statistics and gradients."""
    y = norm(OctaveTensor(parts[0], parts[1], groups))
    assert y.groups == groups
    outputs = [part for part in (y.high, y.low) if part.numel()]
    inputs = [part for part in parts if part.numel()]
    expected = [twin(x) for twin, x in zip(others, inputs, strict=True)]
    for found, wanted in zip(outputs, expected, strict=True):
        check_equal(found, wanted)
    low, count = parts[1].shape[1], len(inputs)
    check_statistics(norm, others, low, groups)
    gradients = torch.autograd.grad(cubes(outputs), [*inputs, *norm.parameters()])
    parameters = [p for twin in others for p in twin.parameters()]
    wanted_gradients = torch.autograd.grad(cubes(expected), [*inputs, *parameters])
    for found, wanted in zip(gradients[:count], wanted_gradients[:count], strict=True):
        check_equal(found, wanted)
    for index, found in enumerate(gradients[count:]):
        check_equal(found, joined(list(wanted_gradients[count + index :: 2]), low, groups))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("low", "groups"), SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_two_batch_norms(kind: str, low: int, groups: int, training: bool) -> None:
    norm = make(kind).train(training)
    others = twins(norm, low, kind, groups)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for step in range(3):
        check_step(norm, others, batch(low, seed=step), groups)
    moved = [name for name, value in norm.state_dict().items() if not value.equal(before[name])]
    tracks = training and norm.track_running_stats
    buffers = ["running_mean", "running_var", "num_batches_tracked"]
    assert moved == (buffers if tracks else [])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5)], ids=str)
@pytest.mark.parametrize(("low", "groups"), SPLITS)
def test_small_maps_too(low: int, groups: int, size: tuple[int, int], training: bool) -> None:
    """Down to one pixel, as in the last stage of small images."""
    norm = make().train(training)
    check_step(norm, twins(norm, low, groups=groups), batch(low, 0, size), groups)


@pytest.mark.parametrize(("low", "groups"), SPLITS)
def test_the_split_may_change_from_batch_to_batch(low: int, groups: int) -> None:
    """As in a supernet: the statistics of a channel stay its own."""
    norm = make().train()
    norm(OctaveTensor(*batch(3, seed=0)))
    norm(images(3, CHANNELS, 6, 7, dtype=torch.float64))
    check_step(norm, twins(norm, low, groups=groups), batch(low, seed=1), groups)


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


@pytest.mark.parametrize("groups", [1, 4])
def test_statistics_can_be_frozen_in_training(groups: int) -> None:
    """As torch's batch norm with tracking switched off later: the buffers stay."""
    norm = make()
    others = twins(norm, low=4, groups=groups)
    for module in (norm, *others):
        module.track_running_stats = False
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    parts = batch(4, seed=0)
    y = norm(OctaveTensor(parts[0], parts[1], groups))
    for found, twin, x in zip((y.high, y.low), others, parts, strict=True):
        check_equal(found, twin(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def with_activation(training: bool) -> tuple[OctaveBatchNormAct2d, BatchNormAct2d]:
    """octnas's, as `octavize` makes it, and timm's with the same weights."""
    made = [randomise(BatchNormAct2d(CHANNELS)).double().train(training) for _ in range(2)]
    made[0].__class__, made[0].act.__class__ = OctaveBatchNormAct2d, OctaveReLU  # type: ignore[union-attr, assignment]
    return made[0], made[1]  # type: ignore[return-value]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("low", "groups"), SPLITS)
def test_activating_norms_activate_both_parts(low: int, groups: int, training: bool) -> None:
    ours, _ = with_activation(training)
    plain = make().train(training)
    plain.load_state_dict(ours.state_dict())
    for seed in range(2):
        parts = batch(low, seed)
        x = OctaveTensor(parts[0], parts[1], groups)
        found, wanted = ours(x), plain(x)
        assert found.groups == groups
        for mine, other in ((found.high, wanted.high), (found.low, wanted.low)):
            torch.testing.assert_close(mine, other.clamp(min=0), rtol=1e-12, atol=1e-12)
            assert not mine.numel() or (mine > 0).any()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_activating_norms_are_timms_own_on_plain_tensors(training: bool) -> None:
    ours, timms = with_activation(training)
    x = images(3, CHANNELS, 6, 7, dtype=torch.float64)
    expected = timms(x)
    assert_sizeable(expected)
    assert torch.equal(ours(x), expected)
    assert list(ours.state_dict()) == list(timms.state_dict())
    assert torch.equal(ours.running_var, timms.running_var)


def test_keys_are_torchs() -> None:
    assert list(OctaveBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
