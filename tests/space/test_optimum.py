"""The best architecture within bounds on any cost, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octnas.errors import BudgetError
from octnas.nn.search_space import search_space
from octnas.space.budgets import costs_of
from octnas.space.cost_table import AdditiveCost, CostLevels, activation_of, macs_of
from octnas.space.optimum import Scores, best_front, best_within, ends
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures, search_spaces
from tests.space.test_cost_table import other_costs
from tests.space.test_latency import table_of

EXACT = 10**6
RESNET10 = search_space(
    "thumbnail_resnet", (3, 16, 16), (0.0, 0.5, 1.0), backbone_args={"channels": (4, 8, 8)}
)


def random_scores(levels: CostLevels, seed: int) -> Scores:
    rng, sites = np.random.default_rng(seed), levels.space.site
    keys = [*((name,) for name in sites), *ends(levels.space)]
    return {key: rng.normal(size=[len(sites[name].choices) for name in key]) for key in keys}


def score(space: SearchSpace, scores: Scores, alphas: dict[str, float]) -> float:
    at = {name: space.site[name].choices.index(alpha) for name, alpha in alphas.items()}
    return float(sum(table[tuple(at[name] for name in key)] for key, table in scores.items()))


def everything(space: SearchSpace, scores: Scores) -> list[tuple[int, float]]:
    """MACs and score of every architecture."""
    return [(space.cost(one).macs, score(space, scores, one)) for one in all_architectures(space)]


@given(search_spaces(), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40)
def test_best_within_is_the_best_of_all(
    space: SearchSpace, seed: int, start: float, end: float
) -> None:
    levels = CostLevels(space, EXACT)
    scores = random_scores(levels, seed)
    span = levels.largest - levels.smallest
    low, high = (round(levels.smallest + share * span) for share in sorted((start, end)))
    inside = [value for macs, value in everything(space, scores) if low <= macs <= high]
    if not inside:
        with pytest.raises(BudgetError, match="no architecture"):
            best_within(levels, scores, low, high)
        assert best_front(levels, scores, low, high, 10) == []
        return
    found = best_within(levels, scores, low, high)
    assert low <= space.cost(found).macs <= high
    assert score(space, scores, found) == pytest.approx(max(inside), rel=1e-9, abs=1e-9)


@given(search_spaces(), st.integers(0, 1000))
@settings(max_examples=40)
def test_best_front_is_the_front_of_all(space: SearchSpace, seed: int) -> None:
    levels = CostLevels(space, EXACT)
    scores = random_scores(levels, seed)
    expected: list[tuple[int, float]] = []
    for macs, value in sorted(everything(space, scores), key=lambda pair: (pair[0], -pair[1])):
        # Of architectures whose sums differ in rounding alone, either may be taken.
        if not expected or value > expected[-1][1] + 1e-9:
            expected.append((macs, value))
    found = best_front(levels, scores, levels.smallest, levels.largest, space.size)
    pairs = [(space.cost(one).macs, score(space, scores, one)) for one in found]
    values = [value for _, value in pairs]
    assert values == sorted(values)
    for macs, value in expected:
        assert max(v for m, v in pairs if m <= macs) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert pairs[0][0] == levels.smallest


def test_a_long_front_is_thinned_with_its_ends_kept() -> None:
    levels = CostLevels(RESNET10, EXACT)
    scores = {(site.name,): -np.array(site.choices) for site in RESNET10.searchable}
    bounds = levels.smallest, levels.largest
    whole = best_front(levels, scores, *bounds, RESNET10.size)
    few = best_front(levels, scores, *bounds, 3)
    assert len(whole) > 5
    assert len(few) == 3
    assert (few[0], few[-1]) == (whole[0], whole[-1])
    assert all(one in whole for one in few)


def test_wide_levels_keep_the_bounds() -> None:
    levels = CostLevels(RESNET10, 40)
    assert not levels.exact
    scores = random_scores(levels, 5)
    middle = (levels.smallest + levels.largest) // 2
    low, high = middle, round(middle * 1.3)
    for one in [*best_front(levels, scores, low, high, 50), best_within(levels, scores, low, high)]:
        assert low <= RESNET10.cost(one).macs <= high


def test_a_lower_bound_above_what_scores_best_is_met() -> None:
    """However many levels below it hold better architectures."""
    resnet50 = search_space("resnet50", (3, 224, 224), (0, 0.125, 0.25, 0.5, 0.75))
    levels = CostLevels(resnet50)
    cheap = {(site.name,): np.array(site.choices) for site in resnet50.searchable}
    low, high = (int(levels.populated[-index]) for index in (2000, 1000))
    found = resnet50.cost(best_within(levels, cheap, low, high)).macs
    assert low <= found <= high


def test_forbidden_choices_are_not_taken() -> None:
    levels = CostLevels(RESNET10, EXACT)
    site = RESNET10.searchable[0]
    scores = {(site.name,): np.array([-np.inf, 0.0, 1.0])}
    front = best_front(levels, scores, levels.smallest, levels.largest, 100)
    assert front
    assert all(one[site.name] > 0 for one in front)


def test_ends_are_the_sites_of_convolutions() -> None:
    pairs = ends(RESNET10)
    names = [site.name for site in RESNET10.searchable]
    assert len(set(pairs)) == len(pairs) > 0
    for one, other in pairs:
        assert names.index(one) < names.index(other)
        assert any({conv.site_in, conv.site_out} == {one, other} for conv in RESNET10.convs)


def test_scores_of_sites_far_apart_are_refused() -> None:
    levels = CostLevels(RESNET10, EXACT)
    first, last = RESNET10.searchable[0], RESNET10.searchable[-1]
    scores = {(first.name, last.name): np.zeros((len(first.choices), len(last.choices)))}
    with pytest.raises(ValueError, match="not the ends of one convolution"):
        best_within(levels, scores, levels.smallest, levels.largest)


@given(other_costs())
def test_the_best_within_any_cost_is_that_of_brute_force(cost: AdditiveCost) -> None:
    space, levels = cost.space, CostLevels(cost.space, 10**6, cost)
    rng = np.random.default_rng(1)
    scores = {(site.name,): rng.normal(size=len(site.choices)) for site in space.sites}

    def score(alphas: dict[str, float]) -> float:
        return sum(
            scores[site.name,][site.choices.index(alphas[site.name])] for site in space.sites
        )

    costs = sorted(cost.of(alphas) for alphas in all_architectures(space))
    low, high = costs[len(costs) // 4], costs[3 * len(costs) // 4]
    inside = [a for a in all_architectures(space) if low <= cost.of(a) <= high]
    found = best_within(levels, scores, low, high)
    assert low <= cost.of(found) <= high
    assert score(found) == pytest.approx(max(map(score, inside)))


SMALL = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), fixed={})


@pytest.mark.parametrize("names", [("activation",), ("peak",), ("activation", "peak")])
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_within_further_bounds_it_is_the_best_of_all(names: tuple[str, ...], share: float) -> None:
    """Of 2,187 architectures under bounds on MACs and on other costs."""
    costs = costs_of(SMALL)
    limits = [(costs[name], int(share * costs[name].vanilla)) for name in names]
    levels = CostLevels(SMALL, EXACT, limits=limits)
    assert levels.exact
    low, high = round(0.4 * SMALL.vanilla_macs), round(0.7 * SMALL.vanilla_macs)
    scores, inside = random_scores(levels, 0), []
    for alphas in all_architectures(SMALL):
        if all(cost.of(alphas) <= most for cost, most in limits):
            inside.append((SMALL.cost(alphas).macs, score(SMALL, scores, alphas)))
    assert levels.counts.sum() == len(inside) < SMALL.size
    within = [value for macs, value in inside if low <= macs <= high]
    assert levels.count(low, high) == len(within) > 10
    found = best_within(levels, scores, low, high)
    assert levels.admits(found, low, high)
    assert score(SMALL, scores, found) == pytest.approx(max(within))
    front = best_front(levels, scores, low, high, EXACT)
    reached = [score(SMALL, scores, one) for one in front]
    macs = [SMALL.cost(one).macs for one in front]
    assert reached == sorted(reached)
    for cost, value in zip(macs, reached, strict=True):
        best = max(other for at, other in inside if low <= at <= cost)
        assert value == pytest.approx(best)
    rng = np.random.default_rng(0)
    drawn = [levels.sample(rng, low, high, by_count=True) for _ in range(50)]
    assert all(levels.admits(one, low, high) for one in drawn)
    assert len({SMALL.key(one) for one in drawn}) > 10


def test_three_costs_at_once_are_spread_over_what_there_is() -> None:
    """Levels are so wide that some ranges hold nothing that is within the limits."""
    costs = costs_of(SMALL)
    latency = table_of(SMALL).cost(SMALL)
    limits = [(costs["activation"], int(0.7 * costs["activation"].vanilla))]
    limits += [(latency, int(0.95 * latency.vanilla)), (costs["peak"], costs["peak"].vanilla)]
    levels = CostLevels(SMALL, limits=limits)
    high = int(0.6 * SMALL.vanilla_macs)
    found = levels.spread(np.random.default_rng(0), 16, 0, high)
    assert len(found) > 8
    assert all(levels.admits(one, 0, high) for one in found)


def test_wide_levels_of_two_costs_keep_the_bounds_and_miss_little() -> None:
    space = search_space("resnet18", (3, 96, 96), (0, 0.25, 0.5, 0.75), fixed={})
    costs = costs_of(space)
    upper = int(0.7 * costs["activation"].vanilla)
    levels = CostLevels(space, 4000, limits=[(costs["activation"], upper)])
    assert not levels.exact
    high = round(0.65 * space.vanilla_macs)
    # The closer to both bounds, the better.
    scores = {sites: np.asarray(term, float) for sites, term in macs_of(space).terms.items()}
    found = best_within(levels, scores, 0, high)
    assert levels.admits(found, 0, high)
    assert space.cost(found).macs > 0.98 * high
    rng = np.random.default_rng(0)
    drawn = [levels.sample(rng, 0, high, by_count=True) for _ in range(50)]
    assert all(levels.admits(one, 0, high) for one in drawn)
    by_memory = {
        sites: np.asarray(term, float) for sites, term in activation_of(space).terms.items()
    }
    assert costs["activation"].of(best_within(levels, by_memory, 0, high)) > 0.97 * upper
