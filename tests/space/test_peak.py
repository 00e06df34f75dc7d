"""Tests."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from octnas.nn.deploy import deploy
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build
from octnas.space.peak import peak_of
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures

SIZE, BATCH = 128, 24
ALPHAS = (0, 0.25, 0.5, 0.75, 1)


def space_of(backbone: str, **settings: object) -> SearchSpace:
    return search_space(backbone, (3, SIZE, SIZE), ALPHAS, fixed={}, **settings)  # type: ignore[arg-type]


def run(model: nn.Module, held: list[Tensor]) -> None:
    """Block by block, so that only what a block needs is alive."""
    stem = (model.conv1, model.act1, model.maxpool)
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    for part in (*stem, *(block for stage in stages for block in stage)):
        held.append(part(held.pop()))


def allocated(model: nn.Module) -> float:
    """Bytes that torch's CPU allocator holds at the peak, by image.

    Of many images, since oneDNN also reorders the weights; channels last, which it computes in.
    """
    model = model.to(memory_format=torch.channels_last)
    image = torch.rand(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    activities = [ProfilerActivity.CPU]
    with torch.inference_mode(), profile(activities=activities, profile_memory=True) as found:
        run(model, [image])
    events = found.profiler.kineto_results.events()
    changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    return float(np.cumsum([change for _, change in changes]).max()) / BATCH


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnet50d", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
        pytest.param("seresnet50", marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_what_the_allocator_says(backbone: str) -> None:
    space = space_of(backbone)
    cost, rng = peak_of(space), np.random.default_rng(0)
    drawn = [{one.name: float(rng.choice(one.choices)) for one in space.sites} for _ in range(2)]
    for alphas in (space.vanilla.alphas, space.uniform(0.5).alphas, *drawn):
        model = deploy(build(space.architecture(alphas), seed=0))
        assert cost.of(alphas) == pytest.approx(allocated(model), rel=0.1)


def test_the_peak_of_vanilla_resnets_is_a_sum_of_their_maps() -> None:
    """ResNet-18's at max pooling with its indices, ResNet-50's at the end of its first block."""
    stem, stage = SIZE // 2, SIZE // 4
    peak18, peak50 = (peak_of(space_of(name)) for name in ("resnet18", "resnet50"))
    assert peak18.vanilla == 4 * (64 * stem**2 + 3 * 64 * stage**2)
    assert peak50.vanilla == 4 * (64 + 256 + 64 + 256) * stage**2
    for cost in (peak18, peak50):
        assert cost.of(cost.space.vanilla.alphas) == cost.vanilla
        assert cost.of({}) == cost.vanilla


def test_halves_of_the_stem_are_pooled_one_after_the_other() -> None:
    cost = peak_of(space_of("resnet18"))
    stem, stage = SIZE // 2, SIZE // 4
    inputs = 32 * stem**2 + 32 * stage**2
    high, low = 32 * stage**2, 32 * (stage // 2) ** 2
    found = cost.of({site.name: 1.0 for site in cost.space.sites} | {"stem": 0.5})
    assert found == 4 * (inputs + max(3 * high, high + 3 * low))


def test_every_value_of_the_peak_is_listed() -> None:
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.5), fixed={})
    cost = peak_of(space)
    found = {cost.of(alphas) for alphas in all_architectures(space)}
    assert found <= set(cost.values)
    assert len(found) > 3
    assert cost.values == sorted(cost.values)
