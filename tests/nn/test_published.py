"""The numbers of DESIGN §3 and of the paper, entry by entry."""

import numpy as np
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import octnas
from octnas.nn.search_space import search_space
from octnas.space.cost_table import CostLevels
from octnas.space.search_space import SearchSpace

SIZE = (3, 224, 224)
ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75)
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)

# Parameters in millions; GMACs at uniform α of 0, .125, .25, .5, .75.
PUBLISHED = {
    "resnet26": (15.995, [2.342, 2.087, 1.858, 1.480, 1.208]),
    "resnet50": (25.557, [4.089, 3.565, 3.104, 2.367, 1.880]),
    "resnet101": (44.549, [7.801, 6.625, 5.598, 3.991, 2.982]),
    "resnet152": (60.193, [11.514, 9.685, 8.092, 5.615, 4.084]),
    "resnext50_32x4d": (25.029, [4.230, 3.719, 3.171, 2.387, 1.877]),
    "seresnet50": (28.088, [4.092, 3.568, 3.106, 2.370, 1.883]),
}

# What makes timm's seresnet152 the network of the paper's table 6, or nearly so.
DEEP_STEM = {"stem_type": "deep", "stem_width": 32}


DEEP = {"resnet101", "resnet152"}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in DEEP)) for one in PUBLISHED]
)
def test_whole_networks(name: str) -> None:
    params, gmacs = PUBLISHED[name]
    space = search_space(name, SIZE, ALPHAS)
    costs = [space.cost(space.uniform(alpha)) for alpha in ALPHAS]
    assert {round(cost.params / 1e6, 3) for cost in costs} == {params}
    assert [round(cost.macs / 1e9, 3) for cost in costs] == gmacs
    assert space.vanilla_macs == costs[0].macs
    by_rule = [octnas.cost(name, alpha).macs for alpha in ALPHAS]
    assert by_rule == [cost.macs for cost in costs]


def test_resnet50_in_quarters() -> None:
    """DESIGN §3.3: plain stem, stage 4 at 0."""
    space = search_space("resnet50", SIZE, QUARTERS)
    levels = CostLevels(space)
    assert len(space.searchable) == 29  # 13 blocks of two convolutions each, and three streams
    assert space.size == 5**29
    assert f"{space.size:.2e}" == "1.86e+20"
    assert levels.exact
    assert len(levels.populated) == 3907
    assert levels.counts.sum() == pytest.approx(float(space.size), rel=1e-12)


def test_resnet50_with_an_octave_stem() -> None:
    """DESIGN §3.3: α up to .75 with .125, the stem searchable, stage 4 at 0."""
    space = search_space("resnet50", SIZE, ALPHAS, fixed={"layer4*": 0.0})
    levels = CostLevels(space)
    assert len(space.searchable) == 30
    assert levels.exact
    assert len(levels.populated) == 28_641


def uniform_sample(space: SearchSpace, draws: int = 20_000) -> np.ndarray:
    """MACs of uniformly drawn architectures as shares of the vanilla network's."""
    rng = np.random.default_rng(0)
    alphas = np.stack([rng.choice(site.choices, draws) for site in space.sites], axis=1)
    return space.macs(alphas) / space.vanilla_macs


@pytest.mark.parametrize(
    ("choices", "fixed", "low", "high"),
    [
        (QUARTERS, {}, 0.39, 0.60),
        (QUARTERS, {"stem": 0.0}, 0.39, 0.60),
        (ALPHAS, None, 0.61, 0.79),
    ],
    ids=["quarters, all sites", "quarters, plain stem", "eighth, paper's rule"],
)
def test_uniform_sampling_crowds_a_narrow_band(
    choices: tuple[float, ...], fixed: dict[str, float] | None, low: float, high: float
) -> None:
    """DESIGN §3.4: 95 % lie there, read as figures rounded to two decimals."""
    shares = uniform_sample(search_space("resnet50", SIZE, choices, fixed=fixed))
    inside = np.mean((shares >= low - 0.005) & (shares < high + 0.005))
    assert inside == pytest.approx(0.95, abs=0.02)
    assert np.quantile(shares, [0.025, 0.975]) == pytest.approx([low, high], abs=0.012)


def test_resnet50_is_as_the_paper_counts_it() -> None:
    """Table 4 of the paper: 4.1, 3.6, 3.1, 2.4, 1.9 GFLOPs."""
    found = [round(octnas.cost("resnet50", alpha).macs / 1e9, 1) for alpha in ALPHAS]
    assert found == [4.1, 3.6, 3.1, 2.4, 1.9]


def test_an_eighth_is_nothing_in_the_first_stage_of_resnext() -> None:
    """128 channels in 32 groups: an eighth of four channels is none."""
    sites = {site.name: site for site in octnas.cost("resnext50_32x4d", 0.125).sites}
    for block in range(3):
        assert sites[f"layer1.{block}.conv1"].low_channels == 0
        assert sites[f"layer1.{block}.conv2"].low_channels == 0
        assert sites[f"layer2.{block}.conv2"].low_channels == 256 // 8
    assert sites["layer1"].low_channels == 256 // 8


@pytest.mark.parametrize(("side", "gmacs", "papers"), [(224, 9.931, 10.9), (320, 20.258, 22.2)])
def test_the_headline_network(side: int, gmacs: float, papers: float) -> None:
    """Table 6 of the paper; timm strides in the 3×3 convolutions, which is cheaper."""
    found = octnas.cost("seresnet152", 0.125, input_size=(3, side, side), backbone_args=DEEP_STEM)
    assert round(found.params / 1e6, 3) == 66.841
    assert round(found.macs / 1e9, 3) == gmacs
    assert 0.85 < gmacs / papers < 1
    assert round(found.params / 1e6, 1) == 66.8


def test_the_headline_network_is_built_as_it_is_costed() -> None:
    model = timm.create_model("oct_seresnet152c").to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    costed = octnas.cost("seresnet152", 0.125, backbone_args=DEEP_STEM)
    assert counter.get_total_flops() == 2 * costed.macs
    assert sum(parameter.numel() for parameter in model.parameters()) == costed.params
