"""What drops values in training: the same at both resolutions, in the mean nothing at all."""

from typing import Any

import pytest
import torch
from timm.layers import DropBlock2d, DropPath
from torch import nn

from octnas import OctaveTensor, octavize
from octnas.nn.layers import OctaveDropBlock2d, OctaveDropout, OctaveDropout2d, OctaveDropPath
from octnas.nn.octave import pool
from tests.nn.families import FAMILIES, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images
from tests.nn.test_networks import check_against_reference

ALL = [
    OctaveDropPath(0.5),
    OctaveDropBlock2d(0.5, 3),
    OctaveDropBlock2d(0.5, 3, couple_channels=False),
    OctaveDropout(0.5),
    OctaveDropout2d(0.5),
]


def ones(images_: int, low: int = 2, size: tuple[int, int] = (16, 12), groups: int = 1) -> Any:
    high_part = torch.ones(images_, 4 - low, *size)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return OctaveTensor(high_part, torch.ones(images_, low, *half), groups)


@pytest.mark.parametrize("low", [2, 4])
@pytest.mark.parametrize("layer", ALL, ids=repr)
def test_nothing_happens_outside_of_training(layer: nn.Module, low: int) -> None:
    x = ones(3, low, groups=2)
    x = OctaveTensor(images(*x.high.shape), images(*x.low.shape, seed=1), 2)
    state = torch.get_rng_state()
    y = layer.eval()(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(y.high, x.high)
    assert torch.equal(y.low, x.low)
    assert y.groups == 2
    copies = y.low.data_ptr() != x.low.data_ptr()
    assert not copies, "a copy costs time at every inference"


@pytest.mark.parametrize("low", [2, 4])
@pytest.mark.parametrize("layer", ALL, ids=repr)
def test_the_split_stays(layer: nn.Module, low: int) -> None:
    x = ones(3, low, groups=2)
    y = layer.train()(x)
    assert (y.high.shape, y.low.shape, y.groups) == (x.high.shape, x.low.shape, 2)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("probability", [0.25, 0.6])
def test_a_path_is_dropped_at_both_resolutions(probability: float, scales: bool) -> None:
    torch.manual_seed(0)
    x = ones(2000)
    y = OctaveDropPath(probability, scales).train()(x)
    kept = y.high[:, 0, 0, 0]
    assert torch.equal(y.high, kept.view(-1, 1, 1, 1) * x.high)
    assert torch.equal(y.low, kept.view(-1, 1, 1, 1) * x.low)
    value = 1 / (1 - probability) if scales else 1.0
    assert kept.unique().tolist() == [0.0, pytest.approx(value)]
    # Five standard deviations of the mean of so many draws.
    spread = 5 * value * (probability * (1 - probability) / 2000) ** 0.5
    assert kept.mean().item() == pytest.approx(value * (1 - probability), abs=spread)


@pytest.mark.parametrize("layer", [OctaveDropPath(0.5), OctaveDropBlock2d(0.3, 3)], ids=repr)
def test_masks_are_those_of_timm(layer: nn.Module) -> None:
    """Under the same seed: what the high part loses is what a plain map would have lost."""
    x, plain = ones(8), torch.ones(8, 4, 16, 12)
    masks = []
    for features in (x, plain):
        torch.manual_seed(5)
        y = layer.train()(features)
        masks.append(y[:, :1] if isinstance(y, torch.Tensor) else y.high[:, :1])
    assert 0 < (masks[1] == 0).float().mean() < 1
    assert torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("size", [(16, 12), (9, 7), (3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("low", [1, 4])
@pytest.mark.parametrize("inplace", [False, True])
def test_blocks_lie_on_the_same_region(low: int, size: tuple[int, int], inplace: bool) -> None:
    """A low pixel is weighted with the share of its cell that is kept."""
    torch.manual_seed(1)
    layer = OctaveDropBlock2d(0.3, 3, inplace=inplace).train()
    y = layer(ones(40, low, size))
    torch.manual_seed(1)
    mask = DropBlock2d(0.3, 3).train()(torch.ones(40, 1, *size))
    assert (mask == 0).any()
    assert (mask > 0).any()
    torch.testing.assert_close(y.high, mask.expand_as(y.high))
    torch.testing.assert_close(y.low, pool(mask).expand_as(y.low))
    dropped = pool((mask == 0).float()).expand_as(y.low) == 1
    assert (y.low[dropped] == 0).all()
    assert (y.low[~dropped] > 0).all()


def test_blocks_keep_the_mean() -> None:
    """timm scales by the share that is kept, so that the mean of every batch is exact."""
    torch.manual_seed(2)
    for low in (1, 4):
        y = OctaveDropBlock2d(0.2, 5).train()(ones(30, low))
        assert y.low.mean().item() == pytest.approx(1, abs=1e-5)
        assert low == 4 or y.high.mean().item() == pytest.approx(1, abs=1e-5)


def test_channels_that_are_not_coupled_draw_their_own_blocks() -> None:
    torch.manual_seed(3)
    y = OctaveDropBlock2d(0.3, 3, couple_channels=False).train()(ones(20))
    for part in (y.high, y.low):
        assert not torch.equal(part[:, 0], part[:, 1])
        assert part.mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", [OctaveDropout, OctaveDropout2d])
def test_dropout_of_values_and_of_channels(kind: type[nn.Module]) -> None:
    torch.manual_seed(4)
    y = kind(0.25).train()(ones(300))
    for part in (y.high, y.low):
        values = part if kind is OctaveDropout else part[:, :, 0, 0]
        assert {round(v, 5) for v in values.unique().tolist()} == {0.0, round(4 / 3, 5)}
        spread = 5 * (0.25 / 0.75 / values.numel()) ** 0.5
        assert part.mean().item() == pytest.approx(1, abs=spread)
        if kind is OctaveDropout2d:
            assert torch.equal(part, values[:, :, None, None].expand_as(part))


@pytest.mark.parametrize("layer", ALL, ids=repr)
def test_gradients_pass_where_values_do(layer: nn.Module) -> None:
    torch.manual_seed(6)
    x = ones(10)
    x.high.requires_grad_()
    x.low.requires_grad_()
    y = layer.train()(x)
    (y.high.sum() + y.low.sum()).backward()
    assert torch.equal(x.high.grad, y.high)  # every value is its input times its mask
    assert torch.equal(x.low.grad, y.low)


@pytest.mark.parametrize(
    "rates", [{"drop_path_rate": 0.5}, {"drop_block_rate": 0.4}, {"drop_rate": 0.5}], ids=str
)
@pytest.mark.parametrize("name", ["basic", "SE-ResNeXt-T"])
def test_networks_drop_in_training_alone(name: str, rates: dict[str, float]) -> None:
    model, twin = create(name, **rates), create(name)
    alphas = random_alphas(model, 0)
    octavize(model, alphas)
    octavize(twin, alphas)
    x = images(4, 3, *size_of(name, training=True))
    expected = twin.eval()(x)
    assert_sizeable(expected)
    assert torch.equal(model.eval()(x), expected)
    torch.manual_seed(0)
    draws = [model.train()(x) for _ in range(2)]
    assert not torch.allclose(*draws)
    draws[0].square().sum().backward()
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.3}, {"drop_block_rate": 0.3}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_training_that_drops_is_that_of_the_reference(name: str, rates: dict[str, float]) -> None:
    """Under the same seed: logits, gradients and statistics, at mixed α."""
    model = create(name, **rates).double().train()
    kinds = (DropPath, DropBlock2d)
    if not any(isinstance(m, kinds) and m.drop_prob for m in model.modules()):
        assert name == "thumbnail"  # blocks are dropped in the last two of four stages
        assert "drop_block_rate" in rates
    x = images(4, 3, *size_of(name, training=True), dtype=torch.float64)
    check_against_reference(model, x, random_alphas(model, 12), 1, "timm")


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_dropped_block_leaves_the_shortcut(alpha: float) -> None:
    model = create("SE", layers=(2, 1, 1, 1), drop_path_rate=0.5)
    octavize(model, {"layer1*": alpha})
    block = model.layer1[1].train()
    assert isinstance(block.drop_path, DropPath)
    block.drop_path.drop_prob = 1.0
    shortcut = OctaveTensor(
        images(4, 32 - int(32 * alpha), 8, 8).relu(), images(4, int(32 * alpha), 4, 4).relu()
    )
    y = block(shortcut)
    assert torch.equal(y.high, shortcut.high)
    assert torch.equal(y.low, shortcut.low)
