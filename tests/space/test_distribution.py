"""Tests."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.errors import BudgetError
from octnas.nn.search_space import search_space
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.distribution import (
    Distribution,
    draw,
    draw_within,
    expected_macs,
    most_probable,
    tilted,
)
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures, search_spaces

Shares = dict[str, list[float]]


@pytest.fixture(scope="module")
def digit_space() -> SearchSpace:
    """7 sites of 5 choices."""
    return search_space(
        "thumbnail_resnet",
        (1, 16, 16),
        (0, 0.25, 0.5, 0.75, 1),
        backbone_args={"channels": [16, 32, 64]},
        fixed={},
        stride_mode="paper",
    )


@st.composite
def spaces_with_shares(draw: st.DrawFn) -> tuple[SearchSpace, Shares]:
    """A space with any distribution at every site, certain ones among them."""
    space = draw(search_spaces(max_sites=4))
    shares = {}
    for site in space.sites:
        weights = [draw(st.integers(0, 5)) for _ in site.choices]
        weights[draw(st.integers(0, len(weights) - 1))] += 1
        shares[site.name] = [weight / sum(weights) for weight in weights]
    return space, shares


def probability(space: SearchSpace, shares: Shares, alphas: dict[str, float]) -> float:
    return math.prod(shares[s.name][s.choices.index(alphas[s.name])] for s in space.sites)


def by_enumeration(space: SearchSpace, shares: Shares) -> float:
    return sum(
        probability(space, shares, alphas) * space.cost(alphas).macs
        for alphas in all_architectures(space)
    )


@given(spaces_with_shares())
def test_the_expectation_is_that_of_all_architectures(case: tuple[SearchSpace, Shares]) -> None:
    space, shares = case
    found = expected_macs(space, shares)
    assert found == pytest.approx(by_enumeration(space, shares), rel=1e-9, abs=1e-6)
    arrays = {name: np.array([column, column]).T for name, column in shares.items()}
    assert np.broadcast_to(expected_macs(space, arrays), 2) == pytest.approx([found] * 2, rel=1e-9)
    tensors = {n: torch.tensor(column, dtype=torch.float64) for n, column in shares.items()}
    assert float(expected_macs(space, tensors)) == pytest.approx(found, rel=1e-9)
    alone = {site.name: shares[site.name] for site in space.searchable}
    assert expected_macs(space, alone) == pytest.approx(found, rel=1e-12)


@given(spaces_with_shares())
def test_gradients_agree_with_finite_differences(case: tuple[SearchSpace, Shares]) -> None:
    space, shares = case
    tensors = {
        name: torch.tensor(column, dtype=torch.float64, requires_grad=True)
        for name, column in shares.items()
    }
    total = expected_macs(space, tensors) + 0 * sum(p.sum() for p in tensors.values())
    total.backward()
    for name, tensor in tensors.items():
        for choice in range(len(shares[name])):
            ends = []
            for sign in (1, -1):
                moved = list(shares[name])
                moved[choice] += sign * 1e-3
                ends.append(expected_macs(space, shares | {name: moved}))
            assert tensor.grad is not None
            slope = (ends[0] - ends[1]) / 2e-3
            assert float(tensor.grad[choice]) == pytest.approx(slope, rel=1e-6, abs=1e-3)


@given(spaces_with_shares(), st.floats(0, 1), st.floats(0, 1))
def test_the_most_probable_is_that_of_all_inside_the_budget(
    case: tuple[SearchSpace, Shares], start: float, end: float
) -> None:
    space, shares = case
    smallest, largest = space.smallest_macs, space.largest_macs
    bounds = sorted(round(smallest + at * (largest - smallest)) for at in (start, end))
    budget = Budget("some", bounds[1], bounds[0])
    inside = [a for a in all_architectures(space) if budget.admits(space.cost(a).macs)]
    levels = CostLevels(space)
    if not inside:
        with pytest.raises(BudgetError):
            most_probable(levels, shares, budget)
        return
    found = most_probable(levels, shares, budget)
    assert budget.admits(space.cost(found).macs)
    best = max(probability(space, shares, alphas) for alphas in inside)
    assert probability(space, shares, found) == pytest.approx(best, rel=1e-9)


def test_wide_levels_never_leave_the_budget(digit_space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    shares = {site.name: rng.dirichlet(np.ones(len(site.choices))) for site in digit_space.sites}
    exact, wide = CostLevels(digit_space), CostLevels(digit_space, max_levels=40)
    assert exact.exact
    assert not wide.exact
    for share in (0.35, 0.5, 0.7):
        budget = Budget("share", round(share * digit_space.vanilla_macs))
        found = [most_probable(levels, shares, budget) for levels in (exact, wide)]
        probabilities = [probability(digit_space, shares, alphas) for alphas in found]  # type: ignore[arg-type]
        assert all(budget.admits(digit_space.cost(alphas).macs) for alphas in found)
        assert probabilities[0] >= probabilities[1] > 0


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_tilted_start_has_the_expectation_that_was_asked_for(
    digit_space: SearchSpace, share: float
) -> None:
    macs = share * digit_space.vanilla_macs
    found = tilted(digit_space, macs)
    assert expected_macs(digit_space, found) == pytest.approx(macs, rel=1e-9)
    assert all(min(shares) > 0 for shares in found.values())


def test_what_no_tilt_reaches_is_approached(digit_space: SearchSpace) -> None:
    for macs, end in ((0.0, digit_space.smallest_macs), (1e12, digit_space.largest_macs)):
        assert expected_macs(digit_space, tilted(digit_space, macs)) == pytest.approx(end, rel=1e-3)


def test_draws_follow_the_probabilities(digit_space: SearchSpace) -> None:
    shares = tilted(digit_space, 0.5 * digit_space.vanilla_macs)
    rng = np.random.default_rng(0)
    drawn = [draw(digit_space, shares, rng) for _ in range(2000)]
    for site in digit_space.sites:
        counts = [sum(a[site.name] == choice for a in drawn) for choice in site.choices]
        for count, share in zip(counts, shares[site.name], strict=True):
            assert count / 2000 == pytest.approx(share, abs=0.04)
    macs = np.mean([digit_space.cost(alphas).macs for alphas in drawn])
    assert macs == pytest.approx(expected_macs(digit_space, shares), rel=0.02)


def test_draws_within_a_budget_fit_it(digit_space: SearchSpace) -> None:
    budget = Budget("half", round(0.5 * digit_space.vanilla_macs))
    levels = CostLevels(digit_space)
    shares = tilted(digit_space, budget.max_macs)
    found = Distribution.of(levels, budget, shares)
    rng = np.random.default_rng(0)
    drawn = [draw_within(digit_space, found, budget, rng) for _ in range(50)]
    assert all(budget.admits(digit_space.cost(alphas).macs) for alphas in drawn)
    assert len({tuple(alphas.values()) for alphas in drawn}) > 30


def test_where_nothing_drawn_fits_it_is_the_most_probable_that_does(
    digit_space: SearchSpace,
) -> None:
    """All but certain of the largest architecture, with half of its MACs to spend."""
    budget = Budget("half", round(0.5 * digit_space.vanilla_macs))
    shares = {s.name: (1.0, *[0.0] * (len(s.choices) - 1)) for s in digit_space.sites}
    found = Distribution.of(CostLevels(digit_space), budget, shares)
    assert found.expected_macs == pytest.approx(digit_space.largest_macs)
    assert found.macs == digit_space.cost(found.alphas).macs <= budget.max_macs
    rng = np.random.default_rng(0)
    assert draw_within(digit_space, found, budget, rng) == found.alphas


def test_a_distribution_is_read_back(digit_space: SearchSpace) -> None:
    budget = Budget("half", round(0.5 * digit_space.vanilla_macs))
    shares = tilted(digit_space, budget.max_macs)
    found = Distribution.of(CostLevels(digit_space), budget, shares)
    assert Distribution.from_dict(json.loads(json.dumps(found.to_dict()))) == found
