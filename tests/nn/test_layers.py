"""Channel attention over both resolutions: one gate per channel, in timm's order of channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import (
    AvgPool2dSame,
    BatchNormAct2d,
    BlurPool2d,
    EcaModule,
    EffectiveSEModule,
    SelectAdaptivePool2d,
    SEModule,
)
from timm.layers.activations import GELU
from torch import Tensor, nn

from octnas.nn import layers
from octnas.nn.layers import (
    OctaveBatchNorm2d,
    OctaveBatchNormAct2d,
    OctaveEca,
    OctaveEffectiveSE,
    OctaveReLU,
    OctaveSE,
)
from octnas.nn.octave import OctaveTensor
from tests.nn.convs import features, octave
from tests.nn.reference import Maps, assert_sizeable, blur_pool, images, places, randomise
from tests.nn.reference_network import ReferenceResNet, both

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


NORM_CHANNELS = 12
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
    norm = OctaveBatchNorm2d(NORM_CHANNELS, **KINDS[kind]).double()
    return randomise(norm)  # type: ignore[return-value]


def twins(
    norm: nn.BatchNorm2d, low: int, kind: str = "default", groups: int = 1
) -> list[nn.BatchNorm2d]:
    """torch's batch norms of the high and of the low channels; one alone if none is high."""
    made = []
    for at in places(NORM_CHANNELS, low, groups):
        twin = nn.BatchNorm2d(len(at), **KINDS[kind]).double()
        state = {key: v[at] if v.dim() else v for key, v in norm.state_dict().items()}
        twin.load_state_dict(state)
        made.append(twin.train(norm.training))
    return [twin for twin in made if twin.num_features]


def joined(values: list[Tensor], low: int, groups: int) -> Tensor:
    """One value per channel in their order, from those of the parts."""
    at = [index for part in places(NORM_CHANNELS, low, groups) for index in part]
    return torch.cat(values)[torch.tensor(at).argsort()]


def batch(low: int, seed: int, size: tuple[int, int] = (6, 7)) -> list[Tensor]:
    """A high and a low part, with different mean and spread."""
    half = tuple((side + 1) // 2 for side in size)
    high_part = images(3, NORM_CHANNELS - low, *size, seed=seed, dtype=torch.float64) * 2 + 1
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
    norm(images(3, NORM_CHANNELS, 6, 7, dtype=torch.float64))
    check_step(norm, twins(norm, low, groups=groups), batch(low, seed=1), groups)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_tensors_are_torchs_own_of_norm(training: bool) -> None:
    norm = make().train(training)
    twin = nn.BatchNorm2d(NORM_CHANNELS).double().train(training)
    twin.load_state_dict(norm.state_dict())
    x = images(3, NORM_CHANNELS, 6, 7, dtype=torch.float64)
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
    made = [randomise(BatchNormAct2d(NORM_CHANNELS)).double().train(training) for _ in range(2)]
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
    x = images(3, NORM_CHANNELS, 6, 7, dtype=torch.float64)
    expected = timms(x)
    assert_sizeable(expected)
    assert torch.equal(ours(x), expected)
    assert list(ours.state_dict()) == list(timms.state_dict())
    assert torch.equal(ours.running_var, timms.running_var)


def test_keys_are_torchs() -> None:
    assert list(OctaveBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


GATED = 12
MODULES: dict[str, tuple[type[nn.Module], Callable[[], nn.Module]]] = {
    "SE": (OctaveSE, lambda: SEModule(GATED, rd_channels=4)),
    "SE, maxima": (OctaveSE, lambda: SEModule(GATED, rd_channels=4, add_maxpool=True)),
    "SE, normalised": (
        OctaveSE,
        lambda: SEModule(GATED, rd_channels=4, norm_layer=nn.BatchNorm2d, act_layer="silu"),
    ),
    "ESE": (OctaveEffectiveSE, lambda: EffectiveSEModule(GATED)),
    "ESE, maxima": (
        OctaveEffectiveSE,
        lambda: EffectiveSEModule(GATED, add_maxpool=True),
    ),
    "ECA": (OctaveEca, lambda: EcaModule(kernel_size=3)),
    "ECA, wide": (OctaveEca, lambda: EcaModule(kernel_size=5, gate_layer="hard_sigmoid")),
    "ECA, MLP": (OctaveEca, lambda: EcaModule(GATED, use_mlp=True, rd_channels=3)),
}
ATTENTION_SPLITS = [(1, 1), (5, 1), (12, 1), (4, 2), (4, 4), (8, 4), (12, 4)]


def make_attention(kind: str) -> tuple[nn.Module, nn.Module]:
    """timm's module, and octnas's with the same weights."""
    swapped, build = MODULES[kind]
    torch.manual_seed(0)
    plain = randomise(build()).double().eval()
    torch.manual_seed(0)
    ours = randomise(build()).double().eval()
    ours.__class__ = swapped
    return plain, ours


@pytest.mark.parametrize("size", [(7, 10), (8, 8), (1, 1)], ids=str)
@pytest.mark.parametrize(("low", "groups"), ATTENTION_SPLITS)
@pytest.mark.parametrize("kind", MODULES)
def test_gates_are_those_of_the_reference(
    kind: str, low: int, groups: int, size: tuple[int, int]
) -> None:
    plain, ours = make_attention(kind)
    x = features(GATED, low, size, groups)
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
    plain, ours = make_attention(kind)
    x = images(2, GATED, 7, 6, dtype=torch.float64)
    expected = plain(x)
    assert_sizeable(expected)
    assert torch.equal(ours(x), expected)


@pytest.mark.parametrize("kind", MODULES)
def test_the_split_changes_no_gate_of_constant_maps(kind: str) -> None:
    """Where every channel is constant, its means are the same at both resolutions."""
    plain, ours = make_attention(kind)
    values = images(2, GATED, 1, 1, dtype=torch.float64)
    expected = plain(values.expand(2, GATED, 8, 8))[:, :, 0, 0]
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
    _, ours = make_attention(kind)
    x = features(GATED, 6, (8, 8))

    def gates(low: Tensor) -> Tensor:
        y = ours(OctaveTensor(x.high, low))
        return (y.high / x.high)[:, :, 0, 0]

    moved = (gates(x.low + 3) - gates(x.low)).abs().amax(0)
    assert moved[-1] > 1e-4  # of the last high channel, a neighbour of the first low one
    if kind == "ECA":
        assert moved[:-1].max() < 1e-12
