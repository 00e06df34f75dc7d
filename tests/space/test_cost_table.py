"""Costs as sums of terms: what the closed form says, for every architecture."""

import itertools
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from octnas.errors import ArchitectureError, BudgetError
from octnas.nn.search_space import search_space
from octnas.space.cost_table import AdditiveCost, CostLevels, activation_of, macs_of, sum_terms
from octnas.space.costs import ConvShape
from octnas.space.search_space import SearchSpace, Site
from tests.conftest import all_architectures, hand_made_space, search_spaces

QUARTERS = (0.0, 0.25, 0.5, 1.0)


EXACT = 10**6  # levels, enough for the spaces of these tests


def thumbnail(**kwargs: Any) -> SearchSpace:
    defaults = {"input_size": (3, 16, 16), "alphas": QUARTERS}
    return search_space("thumbnail_resnet", **{**defaults, **kwargs})


# In ResNet-18, whose stage 1 begins with an identity shortcut, two sites meet the stem's α.
SPACES = {
    "thumbnail": thumbnail(),
    "thumbnail, all sites": thumbnail(alphas=(0.0, 0.5, 1.0), fixed={}),
    "thumbnail, odd maps": thumbnail(
        input_size=(3, 15, 13),
        alphas=(0.0, 0.3, 0.9),
        fixed={"stem": 0.25},
        backbone_args={"channels": (4, 8, 8)},
    ),
    "resnet18": search_space("resnet18", (3, 64, 64), (0.0, 0.5), fixed={"layer4*": 0.0}),
    "resnet26": search_space("resnet26", (3, 75, 75), (0.0, 0.5), fixed={"layer[234]*": 0.0}),
    "one architecture": thumbnail(fixed={"*": 0.5}),
}


def brute_force(space: SearchSpace) -> Counter[int]:
    """How many architectures there are of each cost."""
    shares = itertools.product(*(site.choices for site in space.sites))
    return Counter(space.macs(np.array(list(shares))).tolist())


def check_against_brute_force(space: SearchSpace) -> None:
    levels, expected = CostLevels(space, EXACT), brute_force(space)
    assert levels.exact
    assert levels.counts.sum() == space.size
    assert levels.populated.tolist() == sorted(expected)
    found = levels.counts[(levels.populated - levels.lowest) // levels.width]
    assert found.tolist() == [expected[macs] for macs in sorted(expected)]
    assert (levels.smallest, levels.largest) == (min(expected), max(expected))
    for low, high in itertools.combinations(sorted(expected)[:: max(1, len(expected) // 5)], 2):
        inside = sum(count for macs, count in expected.items() if low <= macs <= high)
        assert levels.count(low, high) == inside


@given(search_spaces())
def test_counts_are_those_of_brute_force_in_any_space(space: SearchSpace) -> None:
    check_against_brute_force(space)


@pytest.mark.parametrize("name", SPACES)
def test_counts_are_those_of_brute_force_in_networks(name: str) -> None:
    assert SPACES[name].size < 20_000
    check_against_brute_force(SPACES[name])


@given(search_spaces(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_wide_levels_never_understate_a_cost(
    space: SearchSpace, max_levels: int, random: Random
) -> None:
    levels = CostLevels(space, max_levels=max_levels)
    rng = np.random.default_rng(random.randrange(2**32))
    assert levels.counts.sum() == space.size
    assert levels.exact or levels.width > CostLevels(space, EXACT).width
    for level in np.flatnonzero(levels.counts):
        stated = levels.lowest + level * levels.width
        actual = space.cost(levels.sample_at(rng, int(level))).macs
        assert actual <= stated
        # Each convolution is one term at most, and rounded up by less than one level.
        assert stated - actual <= len(space.convs) * (levels.width - 1)


@pytest.mark.parametrize("name", SPACES)
def test_every_draw_costs_what_its_level_says(name: str) -> None:
    space = SPACES[name]
    levels, rng = CostLevels(space, EXACT), np.random.default_rng(0)
    allowed = {site.name: site.choices for site in space.sites}
    for level in np.flatnonzero(levels.counts)[:: max(1, len(levels.populated) // 50)]:
        alphas = levels.sample_at(rng, int(level))
        assert list(alphas) == list(allowed)
        assert all(alpha in allowed[name] for name, alpha in alphas.items())
        assert space.cost(alphas).macs == levels.lowest + level * levels.width


@pytest.mark.parametrize("name", ["thumbnail", "thumbnail, all sites", "resnet18"])
def test_architectures_of_a_level_are_equally_likely(name: str) -> None:
    space = SPACES[name]
    levels, rng = CostLevels(space), np.random.default_rng(0)
    level = int(np.argmax(levels.counts))
    size = int(levels.counts[level])
    assert 5 <= size <= 50
    drawn = Counter(tuple(levels.sample_at(rng, level).values()) for _ in range(60 * size))
    assert len(drawn) == size
    assert chisquare(list(drawn.values())).pvalue > 0.001


@pytest.mark.parametrize("max_levels", [EXACT, 40])
@pytest.mark.parametrize("name", ["thumbnail", "resnet18", "resnet26"])
def test_draws_stay_inside_the_bounds(name: str, max_levels: int) -> None:
    space = SPACES[name]
    levels, rng = CostLevels(space, max_levels), np.random.default_rng(0)
    assert levels.exact == (max_levels == EXACT)
    costs = sorted(brute_force(space))
    low, high = costs[len(costs) // 3], costs[2 * len(costs) // 3]
    for bounds in [(low, high), (None, high), (low, None)]:
        drawn = [space.cost(levels.sample(rng, *bounds)).macs for _ in range(50)]
        assert min(drawn) >= (bounds[0] or 0)
        assert max(drawn) <= (bounds[1] or costs[-1])
        assert len(set(drawn)) > 3


@given(search_spaces(), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 9))
def test_draws_from_any_space_stay_inside_the_bounds(
    space: SearchSpace, low: int, high: int, seed: int
) -> None:
    levels, rng = CostLevels(space, EXACT), np.random.default_rng(seed)
    if not any(low <= macs <= high for macs in brute_force(space)):
        with pytest.raises(BudgetError):
            levels.sample(rng, low, high)
        return
    alphas = levels.sample(rng, low, high)
    assert low <= space.cost(alphas).macs <= high
    assert all(alphas[site.name] in site.choices for site in space.sites)


def test_a_single_cost_can_be_asked_for() -> None:
    space = SPACES["thumbnail"]
    levels, rng = CostLevels(space), np.random.default_rng(0)
    for macs in levels.populated.tolist()[::20]:
        assert space.cost(levels.sample(rng, macs, macs)).macs == macs


def test_costs_are_drawn_evenly() -> None:
    """Uniform sampling of α would put .95 of the draws into a fifth of the range (DESIGN §3.4)."""
    space = search_space("resnet50", (3, 224, 224), (0.0, 0.25, 0.5, 0.75, 1.0))
    levels, rng = CostLevels(space), np.random.default_rng(0)
    macs = np.array([space.cost(levels.sample(rng)).macs for _ in range(400)])
    quarter = (4 * (macs - levels.smallest)) // (levels.largest - levels.smallest + 1)
    assert chisquare(np.bincount(quarter, minlength=4)).pvalue > 0.001


def test_levels_far_from_others_are_drawn_more_often() -> None:
    """Costs are drawn evenly, not levels: each gets what lies nearest to it."""
    sites = [Site("a", 16, 1, (0.0, 1.0), 0.0), Site("b", 16, 1, (0.0, 1 / 16, 1 / 8), 1.0)]
    space = hand_made_space(sites, [ConvShape("conv", 16, 16, 1, (3, 3), (8, 8), "a", "b")])
    levels, rng = CostLevels(space), np.random.default_rng(0)
    macs = levels.populated
    assert len(macs) == 4
    borders = [macs[0], *((macs[1:] + macs[:-1]) / 2), macs[-1]]
    expected = 1000 * np.diff(borders) / (macs[-1] - macs[0])
    drawn = Counter(space.cost(levels.sample(rng)).macs for _ in range(1000))
    assert chisquare([drawn[cost] for cost in macs.tolist()], expected).pvalue > 0.001


def test_same_seed_same_draws() -> None:
    levels = CostLevels(SPACES["thumbnail"])
    first, second = (
        [levels.sample(rng) for _ in range(20)] for rng in map(np.random.default_rng, [3, 3])
    )
    assert first == second


@pytest.mark.parametrize("offset", ["below", "above", "empty", "between"])
def test_infeasible_ranges_are_refused_with_figures(offset: str) -> None:
    space = SPACES["thumbnail"]
    levels = CostLevels(space)
    gap = int(np.argmax(np.diff(levels.populated)))
    left, right = (int(macs) for macs in levels.populated[gap : gap + 2])
    assert right - left > 1
    low, high = {
        "below": (0, levels.smallest - 1),
        "above": (levels.largest + 1, 2 * levels.largest),
        "empty": (levels.largest, levels.smallest),
        "between": (left + 1, right - 1),
    }[offset]
    with pytest.raises(BudgetError) as caught:
        levels.sample(np.random.default_rng(0), low, high)
    for figure in (low, high, levels.smallest, levels.largest):
        assert f"{figure:,}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert levels.count(low, high) == 0


@pytest.mark.parametrize("level", [-1, 1, 10**9])
def test_a_level_without_architectures_is_refused(level: int) -> None:
    levels = CostLevels(SPACES["resnet18"])
    assert levels.counts[1] == 0
    with pytest.raises(BudgetError):
        levels.sample_at(np.random.default_rng(0), level)


def test_rare_architectures_of_huge_spaces_are_reached() -> None:
    """Counts far above 2^53 must not lose the single smallest and largest architecture."""
    choices = (0.0, 0.25, 0.5, 1.0)
    names = [f"site{index}" for index in range(40)]
    sites = [Site(name, 4, 1, choices, 0.5) for name in names]
    convs = [
        ConvShape(after, 4, 4, 1, (1, 1), (2, 2), before, after)
        for before, after in itertools.pairwise([None, *names])
    ]
    space = hand_made_space(sites, convs)
    levels, rng = CostLevels(space), np.random.default_rng(0)
    assert levels.counts.sum() == pytest.approx(4.0**40, rel=1e-12)
    assert set(levels.sample(rng, low=levels.largest).values()) == {0.0}
    assert space.cost(levels.sample(rng, high=levels.smallest)).macs == levels.smallest


def test_space_of_one_architecture() -> None:
    space = SPACES["one architecture"]
    levels = CostLevels(space)
    (only,) = all_architectures(space)
    assert levels.smallest == levels.largest == space.cost(only).macs
    assert levels.sample(np.random.default_rng(0)) == only


@st.composite
def other_costs(draw: st.DrawFn) -> AdditiveCost:
    """A cost of any terms, between any pairs of sites and not only those that MACs couple."""
    space = draw(search_spaces())
    names = [site.name for site in space.sites]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for sites in draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)))):
        shape = [len(space.site[name].choices) for name in sites]
        found.append((sites, rng.integers(0, 30, shape)))
    constant = draw(st.integers(0, 1000))
    return AdditiveCost("latency", space, constant, sum_terms(found), vanilla=0)


@given(search_spaces())
def test_macs_and_activation_are_those_of_the_space(space: SearchSpace) -> None:
    macs, activation = macs_of(space), activation_of(space)
    for alphas in all_architectures(space):
        cost = space.cost(alphas)
        assert macs.of(alphas) == cost.macs
        assert activation.of(alphas) == cost.activation_bytes
    vanilla = space.cost({site.name: 0.0 for site in space.sites})
    assert (macs.vanilla, activation.vanilla) == (vanilla.macs, vanilla.activation_bytes)


@given(other_costs())
def test_levels_of_any_cost_are_those_of_brute_force(cost: AdditiveCost) -> None:
    levels = CostLevels(cost.space, 10**6, cost)
    expected = Counter(cost.of(alphas) for alphas in all_architectures(cost.space))
    assert levels.exact
    assert levels.populated.tolist() == sorted(expected)
    assert [levels.count(value, value) for value in sorted(expected)] == [
        expected[value] for value in sorted(expected)
    ]
    low, high = sorted(expected)[len(expected) // 3], sorted(expected)[2 * len(expected) // 3]
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert low <= cost.of(levels.sample(rng, low, high)) <= high


def test_terms_of_the_same_sites_are_one() -> None:
    square = np.arange(6).reshape(2, 3)
    terms = sum_terms([(("a", "b"), square), (("b", "a"), square.T), (("c", "c"), np.eye(2))])
    assert terms[("a", "b")].tolist() == (2 * square).tolist()
    assert terms[("c",)].tolist() == [1, 1]


@given(search_spaces())
def test_an_alpha_that_is_no_choice_is_refused(space: SearchSpace) -> None:
    name = space.sites[0].name
    with pytest.raises(ArchitectureError, match=f"α of site '{name}': found 0.987, allowed: "):
        macs_of(space).of({name: 0.987})


def test_sites_that_are_not_named_are_at_their_first_choice() -> None:
    from octnas.nn.search_space import search_space

    space = search_space("thumbnail_resnet", (3, 16, 16), (0.25, 0.5), fixed={"stem": 0.5})
    first = dict(zip(space.site, itertools.repeat(0.25), strict=False)) | {"stem": 0.5}
    assert macs_of(space).of({}) == space.cost({}).macs == space.cost(first).macs
