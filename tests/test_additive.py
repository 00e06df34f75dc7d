"""Costs as sums of terms: what the closed form says, for every architecture."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.additive import AdditiveCost, activation_of, macs_of, sum_terms
from octnas.errors import ArchitectureError
from octnas.levels import CostLevels
from octnas.space import SearchSpace
from tests.conftest import all_architectures, search_spaces


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
    from octnas.nn.shapes import search_space

    space = search_space("thumbnail_resnet", (3, 16, 16), (0.25, 0.5), fixed={"stem": 0.5})
    first = dict(zip(space.site, itertools.repeat(0.25), strict=False)) | {"stem": 0.5}
    assert macs_of(space).of({}) == space.cost({}).macs == space.cost(first).macs
