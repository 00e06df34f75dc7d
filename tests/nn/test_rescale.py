"""Rescaled kernels against the original convolution, evaluated at full resolution."""

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octnas import OctaveConv2d, OctaveTensor, octavize
from octnas.errors import UnsupportedModelError
from octnas.nn import activate, subnet
from octnas.nn.deploy import deploy
from octnas.nn.octave import Features, low_mask, pool
from octnas.nn.octavize import geometries
from octnas.nn.rescale import (
    RescaledConv2d,
    _fit_kernel,
    fit_kernels,
    rescale_kernel,
    rescale_kernels,
    rescale_on_use,
    tap_matrix,
)
from octnas.nn.supernet import make_switchable
from tests.nn.families import FAMILIES, create, random_alphas, site_names, size_of
from tests.nn.reference import assert_sizeable, images, places, spread, upsample

HIGH, LOW = 0, 1
# Pixels of the original's input per input pixel of each path, by source and target.
CELLS = {
    "stride 1": {(HIGH, HIGH): 1, (HIGH, LOW): 2, (LOW, HIGH): 2, (LOW, LOW): 2},
    "pooled": {(HIGH, HIGH): 2, (HIGH, LOW): 4, (LOW, HIGH): 2, (LOW, LOW): 4},
    "strided": {(HIGH, HIGH): 1, (HIGH, LOW): 2},
}
SIZES = [(16, 24), (7, 13), (1, 1)]


def make(*channels: int, kernel: int = 3, low_out: float, **kwargs: Any) -> OctaveConv2d:
    padding = kwargs.get("dilation", 1) * (kernel - 1) // 2
    torch.manual_seed(0)
    return OctaveConv2d(*channels, kernel, alpha=low_out, padding=padding, **kwargs).double()


def kind_of(conv: OctaveConv2d, low_in: int) -> str:
    if conv.stride == (1, 1):
        return "stride 1"
    plain = low_in == conv.low_channels == 0 and conv.stride_mode == "timm"
    return "strided" if conv.strided or plain else "pooled"


def constant_on_cells(channels: int, size: tuple[int, int], cell: int) -> Tensor:
    """A map of whole cells, that is at least as large as asked for."""
    cells = images(2, channels, *(-(-side // 4) * 4 // cell for side in size), dtype=torch.float64)
    return cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def original(
    conv: OctaveConv2d, weight: Tensor, x: Tensor, size: tuple[int, int], kind: str, low_in: int
) -> tuple[Tensor, Tensor]:
    """High and low output: the original convolution at full resolution, averaged over pixels.

    At an odd border the last cell is as large as all others.
    """
    split_in = conv.split_groups if conv.depthwise else conv.groups
    inputs = places(conv.in_channels, low_in, split_in)
    outputs = places(conv.out_channels, conv.low_channels, conv.split_groups)
    stride = conv.stride[0]
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    found: list[Tensor | None] = [None, None]
    for (source, target), cell in CELLS[kind].items():
        mean = 2 if target == LOW or (kind == "stride 1" and source == LOW) else 1
        height, width = (-(-side // cell) * cell for side in size)
        step = stride * mean
        whole = F.pad(x[..., :height, :width], (0, -width % step, 0, -height % step))
        masked = spread(whole[:, inputs[source]], inputs[source], conv.in_channels)
        y = F.conv2d(masked, weight, None, stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        y = F.avg_pool2d(y, mean)[:, outputs[target]]
        if mean == 2 and target == HIGH:
            y = upsample(y, size)
        rows, columns = (-(-side // (stride * (1 + target))) for side in size)
        there = found[target]
        before = bias[outputs[target], None, None] if there is None else there
        found[target] = before + y[..., :rows, :columns]
    high, low = found
    assert high is not None
    assert low is not None
    return high, low


def octave_input(x: Tensor, size: tuple[int, int], low_in: int, groups: int) -> Features:
    high, low = places(x.shape[1], low_in, groups)
    x = x[..., : size[0], : size[1]]
    return OctaveTensor(x[:, high], x[:, low, ::2, ::2], groups) if low_in else x


def check(conv: OctaveConv2d, low_in: int, size: tuple[int, int], weight: Tensor) -> None:
    """A rescaled convolution, whose kernel was ``weight``, is the original on constant cells."""
    kind = kind_of(conv, low_in)
    groups = conv.split_groups if conv.depthwise else conv.groups
    for target in (HIGH, LOW):
        # The coarsest cells of all paths to this part.
        cell = max(cell for (_, there), cell in CELLS[kind].items() if there == target)
        x = constant_on_cells(conv.in_channels, size, cell if low_in == 0 else max(cell, 2))
        y = conv(octave_input(x, size, low_in, groups))
        found = (y, y[:, :0]) if isinstance(y, Tensor) else (y.high, y.low)
        expected = original(conv, weight, x, size, kind, low_in)[target]
        assert found[target].shape[1] == expected.shape[1]
        if expected.shape[1]:
            torch.testing.assert_close(found[target], expected, rtol=1e-10, atol=1e-10)
            if expected.shape[1] > 1 and size != (1, 1):
                assert_sizeable(expected)


def rescaled(conv: OctaveConv2d, low_in: int) -> Tensor:
    """Rescale a convolution in place; returns what its kernel was."""
    groups = conv.split_groups if conv.depthwise else conv.groups
    weight = conv.weight.detach().clone()
    rescale_kernel(conv, conv.geometry(low_in, groups))
    return weight


# w0, w1 and w2 in; the new taps out.
FORMULAS = {
    "stride 1": [[0.5, 0, 0], [0.5, 1, 0.5], [0, 0, 0.5]],
    "pooled, into high": [[1, 0, 0], [0, 1, 1], [0, 0, 0]],
    "pooled, into low": [[0.5, 0, 0], [0.5, 1, 1], [0, 0, 0]],
    "untouched": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


@pytest.mark.parametrize(
    ("stride", "formulas"),
    [(1, ("untouched", *["stride 1"] * 3)), (2, ("pooled, into high", "pooled, into low") * 2)],
)
def test_three_taps(stride: int, formulas: tuple[str, ...]) -> None:
    conv = make(4, 6, low_out=0.5, stride=stride)
    weight = rescaled(conv, low_in=2)
    high_in, low_in, high_out, low_out = slice(2), slice(2, 4), slice(3), slice(3, 6)
    paths = [(high_out, high_in), (low_out, high_in), (high_out, low_in), (low_out, low_in)]
    for place, name in zip(paths, formulas, strict=True):
        block, old = conv.weight[place], weight[place]
        matrix = torch.tensor(FORMULAS[name], dtype=torch.float64)
        expected = torch.einsum("ax,oixy,by->oiab", matrix, old, matrix)
        torch.testing.assert_close(block, expected, rtol=0, atol=1e-15)
        assert torch.equal(block, old) == (name == "untouched")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_exact_on_cells(kernel: int, stride: int, size: tuple[int, int]) -> None:
    for low_in, low_out in itertools.product((0, 2, 4), (0.0, 0.5, 1.0)):
        conv = make(4, 6, kernel=kernel, low_out=low_out, stride=stride, stride_mode="paper")
        check(conv, low_in, size, rescaled(conv, low_in))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_a_strided_stem_is_exact(kernel: int, size: tuple[int, int]) -> None:
    for low_out in (0.0, 0.5, 1.0):
        conv = make(3, 6, kernel=kernel, low_out=low_out, stride=2, strided=True)
        weight = rescaled(conv, low_in=0)
        check(conv, 0, size, weight)
        high = round(6 * (1 - low_out))
        assert torch.equal(conv.weight[:high], weight[:high])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_exact(groups: int, stride: int, size: tuple[int, int]) -> None:
    for low_in, low_out in itertools.product((0, 4, 8), (0.0, 0.5, 1.0)):
        conv = make(8, 16, low_out=low_out, stride=stride, groups=groups)
        check(conv, low_in, size, rescaled(conv, low_in))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_exact(stride: int, size: tuple[int, int]) -> None:
    for low in (0, 2, 6):
        conv = make(6, 6, kernel=5, low_out=low / 6, stride=stride, groups=6)
        check(conv, low, size, rescaled(conv, low))


def test_rows_and_columns_may_differ() -> None:
    conv = OctaveConv2d(2, 2, (1, 5), padding=(0, 2), alpha=1.0).double()
    weight = rescaled(conv, low_in=2)
    matrix = tap_matrix(5, 1, 1, 2, 2)
    torch.testing.assert_close(conv.weight[:, :, 0], weight[:, :, 0] @ matrix.T)
    check_sum = conv.weight.sum((2, 3)), weight.sum((2, 3))
    torch.testing.assert_close(*check_sum)


def test_exact_means_exact_on_cells_only() -> None:
    """The check can fail: as kernels were, and on maps that are not constant on cells."""
    conv = make(4, 6, low_out=0.5)
    with pytest.raises(AssertionError):
        check(conv, 2, (16, 24), conv.weight.detach().clone())
    rescaled(conv, low_in=2)
    with pytest.raises(AssertionError):
        check(conv, 2, (16, 24), conv.weight.detach().clone())


@pytest.mark.parametrize("dilation", [2, 4])
def test_dilated_kernels_are_interpolated(dilation: int) -> None:
    """Half way between two taps, half of a weight each; better than a kernel twice as wide."""
    conv = make(4, 4, low_out=1.0, dilation=dilation)
    unchanged = copy.deepcopy(conv)
    weight = rescaled(conv, low_in=4)
    matrix = torch.tensor(FORMULAS["stride 1"], dtype=torch.float64)
    torch.testing.assert_close(conv.weight.detach(), matrix @ weight @ matrix.T)
    x = images(4, 4, 64, 64, dtype=torch.float64)
    for _ in range(2):  # smooth
        x = F.avg_pool2d(x, 5, 1, 2)
    low = F.avg_pool2d(x, 2)
    full = F.conv2d(x, weight, conv.bias, padding=dilation, dilation=dilation)
    expected = F.avg_pool2d(full, 2)
    errors = [
        (one(OctaveTensor(x[:, :0], low)).low - expected)[..., 8:-8, 8:-8].square().mean()
        for one in (conv, unchanged)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_a_strided_1x1_kernel_is_kept() -> None:
    conv = make(3, 4, kernel=1, low_out=0.5, stride=2, strided=True)
    assert torch.equal(rescaled(conv, low_in=0), conv.weight)


@pytest.mark.parametrize("name", FAMILIES)
def test_alpha_0_changes_nothing(name: str) -> None:
    model = octavize(create(name), {"*": 0.0})
    before = copy.deepcopy(model.state_dict())
    assert rescale_kernels(model) is model
    assert list(before) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_all_families(name: str) -> None:
    """Every convolution where it stands; nothing else is changed."""
    plain = create(name).double()
    model = octavize(plain, random_alphas(plain, 0))
    before = copy.deepcopy(model.state_dict())
    kinds = {key: (value.shape, value.dtype) for key, value in before.items()}
    rescale_kernels(model)
    state = model.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == kinds
    kernels = {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, OctaveConv2d)
    }
    changed = {key for key, value in state.items() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= set(kernels)
    how = geometries(model)
    for key, conv in kernels.items():
        if conv.dilation == (1, 1):
            low_in = conv.low_channels if conv.depthwise else how[conv].low_in
            check(conv, low_in, (9, 14), before[key])


def test_closer_to_the_original_on_smooth_images() -> None:
    plain = create("thumbnail").double().eval()
    model = octavize(copy.deepcopy(plain), {"*": 0.5})
    x = F.interpolate(images(16, 3, 4, 4, dtype=torch.float64), (32, 32), mode="bilinear")
    with torch.no_grad():
        expected, before = plain(x), model(x)
        after = rescale_kernels(model)(x)
    assert_sizeable(expected)
    assert (after - expected).square().mean() < 0.5 * (before - expected).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_and_layout(dtype: torch.dtype) -> None:
    """Rounded once from the exact kernel, whatever the memory layout."""
    exact = make(4, 6, low_out=0.5)
    conv = copy.deepcopy(exact).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact.weight.data = conv.weight.detach().double()
    parameter = conv.weight
    for one in (exact, conv):
        rescaled(one, low_in=2)
    assert conv.weight is parameter
    assert conv.weight.requires_grad
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv.weight, exact.weight.to(dtype))


def refused() -> dict[str, tuple[nn.Module, str]]:
    thumbnail = octavize(create("thumbnail"), {"*": 0.5})
    switchable = make_switchable(copy.deepcopy(thumbnail))
    return {
        "plain": (create("thumbnail"), "found a ThumbnailResNet, allowed: an octave network"),
        "switchable": (switchable, "found a supernet"),
        "rescaled": (rescale_on_use(copy.deepcopy(thumbnail)), "found a supernet"),
        "deployed": (deploy(thumbnail), "allowed: an octave network"),
        "another": (nn.Sequential(make(2, 2, low_out=0.5)), "allowed: timm's ResNets"),
    }


@pytest.mark.parametrize("case", ["plain", "switchable", "rescaled", "deployed", "another"])
def test_others_are_refused_unchanged(case: str) -> None:
    model, message = refused()[case]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=message):
        rescale_kernels(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_subnet_of_a_switchable_supernet_is_taken() -> None:
    model = octavize(create("thumbnail"), {})
    alphas = dict.fromkeys(site_names(model), 0.5)
    expected = copy.deepcopy(model)
    activate(expected, alphas)
    rescale_kernels(expected)
    found = rescale_kernels(subnet(make_switchable(model), alphas))
    for key, value in found.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "switchable"), [("thumbnail", False), *((name, True) for name in FAMILIES)]
)
def test_a_supernet_rescales_on_use(name: str, switchable: bool) -> None:
    """At any α it computes what a network computes whose kernels were rescaled for it."""
    model = octavize(create(name), {}).eval()
    supernet = rescale_on_use(copy.deepcopy(model))
    if switchable:
        supernet = make_switchable(supernet)
    x = images(2, 3, *size_of(name))
    for seed in (None, 1):
        alphas = {} if seed is None else random_alphas(model, seed)
        expected = copy.deepcopy(model)
        activate(expected, alphas)
        activate(supernet, alphas)
        with torch.no_grad():
            wanted, plain = rescale_kernels(copy.deepcopy(expected))(x), expected(x)
            found, folded = supernet(x), subnet(supernet, alphas)(x)
        assert_sizeable(wanted)
        off = 1e-4 * wanted.abs().max()
        torch.testing.assert_close(found, wanted, rtol=0, atol=off)
        torch.testing.assert_close(folded, wanted, rtol=0, atol=off)
        assert torch.equal(found, plain) if seed is None else (wanted - plain).abs().max() > off
    assert subnet(supernet, alphas).state_dict().keys() == model.state_dict().keys()
    assert not any(isinstance(m, RescaledConv2d) for m in subnet(supernet, alphas).modules())


def test_a_kernel_that_is_rescaled_on_use_learns() -> None:
    """Its gradient is that of the rescaled kernel, carried back through the linear map."""
    conv, x = make(4, 4, low_out=0.5), images(2, 4, 8, 8).double()
    expected = copy.deepcopy(conv)
    conv.__class__ = RescaledConv2d
    rescale_kernel(expected, expected.geometry())
    for one in (conv, expected):
        y = one(x)
        (y.high.square().sum() + y.low.square().sum()).backward()
    weight = conv.weight.detach().clone().requires_grad_()
    conv.weight = nn.Parameter(weight.detach())
    (conv.fitted_weight(conv.geometry()) * expected.weight.grad).sum().backward()
    carried, conv.weight.grad = conv.weight.grad, None
    y = conv(x)
    (y.high.square().sum() + y.low.square().sum()).backward()
    assert carried.abs().max() > 1
    torch.testing.assert_close(conv.weight.grad, carried)
    # Of the high rows, whose kernel stays, as it is.
    torch.testing.assert_close(conv.weight.grad[:2], expected.weight.grad[:2])
    assert not torch.allclose(conv.weight.grad[2:], expected.weight.grad[2:], rtol=0.01)


def test_an_evaluation_does_not_hinder_a_training() -> None:
    """What is computed once in inference mode serves both."""
    conv, x = make(4, 4, low_out=0.5, kernel=7), images(2, 4, 8, 8).double()
    conv.__class__ = RescaledConv2d
    with torch.inference_mode():
        conv(x)
    conv(x).low.sum().backward()
    assert conv.weight.grad.abs().max() > 1


def test_registered_networks_are_taken() -> None:
    model = timm.create_model("oct_resnet18", alphas=0.5, channels=(8, 8, 8, 8), num_classes=2)
    before = copy.deepcopy(model.state_dict())
    rescale_kernels(model)
    assert not torch.equal(model.layer2[0].conv1.weight, before["layer2.0.conv1.weight"])
    assert torch.equal(model.layer4[0].conv2.weight, before["layer4.0.conv2.weight"])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("alpha_in", "alpha_out"), [(0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (1.0, 1.0)]
)
def test_a_fitted_kernel_is_that_of_least_squares(
    alpha_in: float, alpha_out: float, groups: int
) -> None:
    """Of a small problem that conjugate gradients solve: numpy's least squares of all blocks."""
    size = (6, 8)
    conv = make(4, 4, kernel=1, low_out=alpha_out, groups=groups)
    target, whole = (images(6, 4, *size, seed=seed, dtype=torch.float64) for seed in (0, 1))
    low_in = round(4 * alpha_in)
    x = split(whole, low_in, groups) if low_in else whole
    how = conv.geometry(*((low_in, groups) if low_in else ()))
    with torch.no_grad():
        _fit_kernel(conv, how, x, target)
        found = conv(x)
        # Linear in the kernel: the columns of the design are the outputs of its unit vectors.
        weight = conv.weight.clone()
        columns = []
        for index in range(weight.numel()):
            conv.weight.zero_().view(-1)[index] = 1
            columns.append(flat(conv(x)) - bias(conv, x))
        wanted = flat_target(target, conv, groups)
        best = torch.linalg.lstsq(torch.stack(columns, 1), wanted - bias(conv, x)).solution
        missed = ((flat(found) - wanted) ** 2).sum()
        least = ((torch.stack(columns, 1) @ best + bias(conv, x) - wanted) ** 2).sum()
    assert 0.1 < least <= missed * (1 + 1e-9)
    assert missed <= 1.001 * least


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_fit_that_ends_early_or_is_large_is_kept(channels: int, scale: float) -> None:
    """The steps run out of directions, and squares may be beyond float32."""
    conv = make(channels, 8, kernel=1, low_out=0.5).float()
    x = scale * images(4, channels, 6, 8)
    wanted = scale * images(4, 8, 6, 8, seed=1)
    with torch.no_grad():
        before = conv.weight.clone()
        _fit_kernel(conv, conv.geometry(), x, wanted)
    assert conv.weight.isfinite().all()
    assert (conv.weight - before).abs().max() > 0.1


def split(x: Tensor, low: int, groups: int) -> OctaveTensor:
    mask = low_mask(x.shape[1], low, groups, like=x)
    return OctaveTensor(x[:, ~mask], pool(x[:, mask]), groups)


def flat(x: Features) -> Tensor:
    """One column; a low pixel stands for four."""
    if isinstance(x, Tensor):
        return x.flatten()
    return torch.cat([x.high.flatten(), 2 * x.low.flatten()])


def flat_target(target: Tensor, conv: OctaveConv2d, groups: int) -> Tensor:
    low = conv.low_channels
    return flat(split(target, low, groups) if low else target)


def bias(conv: OctaveConv2d, x: Features) -> Tensor:
    before = conv.weight.clone()
    conv.weight.zero_()
    found = flat(conv(x))
    conv.weight.copy_(before)
    return found


@pytest.mark.parametrize("name", ["basic", "D", "ResNeXt", "depthwise", "SE", "ECA"])
def test_fitting_brings_a_network_nearer_to_the_original(name: str) -> None:
    """On other images than those that it was fitted on."""
    model = create(name).eval()
    shown, other = (
        F.interpolate(images(16, 3, 24, 24, seed=seed), scale_factor=2) for seed in (1, 2)
    )
    whole = octavize(copy.deepcopy(model), 0)
    converted = rescale_kernels(octavize(model, 0.5))
    with torch.no_grad():
        wanted, before = whole(other), converted(other)
        fit_kernels(converted, whole, shown)
        after = converted(other)
    assert_sizeable(wanted)
    assert not converted.training
    assert (after - wanted).norm() < 0.8 * (before - wanted).norm()


def test_a_network_without_low_channels_is_not_fitted() -> None:
    model = octavize(timm.create_model("resnet18", num_classes=5), 0).eval()
    before = copy.deepcopy(model.state_dict())
    fit_kernels(model, copy.deepcopy(model), images(4, 3, 32, 32))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
