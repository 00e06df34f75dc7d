"""Tests."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.errors import ArchitectureError
from octnas.space.architecture import Architecture
from octnas.space.costs import ConvShape
from octnas.space.search_space import SearchSpace, Site
from tests.conftest import (
    all_architectures,
    counted_macs,
    hand_made_space,
    low_count,
    search_spaces,
)


def conv(name: str, site_in: str | None, site_out: str) -> ConvShape:
    return ConvShape(name, 8, 8, 1, (3, 3), (5, 5), site_in, site_out)


SPACE = hand_made_space(
    [
        Site("stem", 8, 1, (0.0,), 0.0),
        Site("a", 8, 1, (0.25, 0.5), 0.5),
        Site("b", 8, 1, (0.0, 0.25, 0.5, 1.0), 1.0),
    ],
    [conv("one", None, "stem"), conv("two", "stem", "a"), conv("three", "a", "b")],
    other_macs=77,
)


@given(search_spaces(), st.data())
def test_costs_are_counted_path_by_path(space: SearchSpace, data: st.DataObject) -> None:
    alphas = {site.name: data.draw(st.sampled_from(site.choices)) for site in space.sites}
    low = {site.name: low_count(alphas[site.name], site.channels) for site in space.sites}
    cost = space.cost(alphas)
    assert cost.params == space.params
    assert cost.macs == space.other_macs + sum(
        counted_macs(conv, low[conv.site_in] if conv.site_in else 0, low[conv.site_out])
        for conv in space.convs
    )
    assert cost.activation_bytes == 4 * sum(
        (conv.out_channels - low[conv.site_out]) * conv.pixels
        + low[conv.site_out] * conv.low_pixels
        for conv in space.convs
    )


@given(search_spaces())
def test_many_costs_at_once_are_the_single_ones(space: SearchSpace) -> None:
    architectures = list(all_architectures(space))
    assert space.size == len(architectures)
    macs = space.macs(np.array([list(alphas.values()) for alphas in architectures]))
    assert macs.dtype == np.int64
    assert macs.tolist() == [space.cost(alphas).macs for alphas in architectures]


@given(search_spaces())
def test_round_trips(space: SearchSpace) -> None:
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert pickle.loads(pickle.dumps(space)) == space


def test_a_space_with_the_former_name_of_its_alphas_is_read() -> None:
    former = {{"alphas": "grid"}.get(key, key): value for key, value in SPACE.to_dict().items()}
    assert SearchSpace.from_dict(former) == SPACE


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_unknown_schema_is_refused(schema: object) -> None:
    with pytest.raises(ArchitectureError, match="schema"):
        SearchSpace.from_dict({**SPACE.to_dict(), "schema": schema})


@given(search_spaces())
def test_every_architecture_of_a_space_is_on_its_grid(space: SearchSpace) -> None:
    for alphas in all_architectures(space):
        architecture = space.architecture(alphas)
        space.check_quantized(architecture)
        space.check_choices(architecture)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"alphas": {"b": 0.75, "a": 0.25}}, "α of site 'b': found 0.75, allowed in the search"),
        ({"alphas": {"b": 0.25}}, "α of site 'a': found 0, allowed in the search space: 0.25, 0.5"),
        ({"alphas": {"c": 0.25}}, "unknown sites c; allowed: stem, a, b"),
        ({"backbone": "other"}, "backbone: found 'other', the search space's is 'hand_made'"),
        ({"channel_multiple": 2}, "channel_multiple: found 2, the search space's is 1"),
        ({"backbone_args": {"width": 2}}, "backbone_args: found {'in_chans': 3, 'width': 2}"),
    ],
)
def test_what_is_not_of_the_space_is_refused(changed: dict[str, object], words: str) -> None:
    space = replace(SPACE, backbone_args={"in_chans": 3})
    architecture = space.architecture({"a": 0.25, "b": 1.0})
    space.check_choices(architecture)
    with pytest.raises(ArchitectureError, match=re.escape(words)):
        space.check_choices(replace(architecture, **changed))  # type: ignore[arg-type]


def test_off_the_grid_names_the_nearest_below() -> None:
    architecture = replace(SPACE.architecture({}), alphas={"b": 0.3})
    words = "found 0.3, allowed: multiples of 1 of its 8 channels, such as 0.25 or 0.375"
    with pytest.raises(ArchitectureError, match=words):
        SPACE.check_quantized(architecture)


def test_fixed_sites_are_not_searchable() -> None:
    assert [site.name for site in SPACE.searchable] == ["a", "b"]
    assert SPACE.size == 1 * 2 * 4


@pytest.mark.parametrize(
    ("alpha", "multiple", "quantized"),
    [(0.0, 1, 0.0), (0.3, 1, 0.25), (0.99, 1, 0.875), (0.99, 4, 0.5), (0.3, 4, 0.0), (1.0, 3, 1.0)],
)
def test_shares_are_rounded_down(alpha: float, multiple: int, quantized: float) -> None:
    space = replace(SPACE, channel_multiple=multiple)
    assert space.quantize({"a": alpha})["a"] == quantized
    assert space.architecture({"a": alpha}).alphas["a"] == quantized
    assert space.architecture({"a": alpha}).channel_multiple == multiple


def test_sites_that_are_not_named_are_at_their_first_choice() -> None:
    assert SPACE.quantize({"b": 1.0}) == {"stem": 0.0, "a": 0.25, "b": 1.0}


def test_sites_that_an_architecture_does_not_name_are_at_0() -> None:
    """As `Architecture` says, and as the network is built."""
    given = Architecture("hand_made", (3, 8, 8), {"b": 1.0})
    assert SPACE.cost(given) == SPACE.cost({"stem": 0.0, "a": 0.0, "b": 1.0})
    assert SPACE.cost(given) != SPACE.cost({"b": 1.0})


def test_uniform_leaves_fixed_sites_alone() -> None:
    fixed = replace(SPACE, sites=(replace(SPACE.sites[0], choices=(0.5,)), *SPACE.sites[1:]))
    assert fixed.uniform(0.25).alphas == {"stem": 0.5, "a": 0.25, "b": 0.25}


def test_vanilla_is_0_everywhere_even_where_it_is_no_choice() -> None:
    assert SPACE.vanilla_macs == 3 * 8 * 8 * 9 * 25 + 77


@pytest.mark.parametrize("alphas", [{"a": 1.5}, {"a": -0.1}, {"a": float("nan")}, {"nowhere": 0.5}])
def test_impossible_alphas_are_refused_naming_the_site(alphas: dict[str, float]) -> None:
    for ask in (SPACE.quantize, SPACE.architecture, SPACE.cost):
        with pytest.raises(ArchitectureError, match=next(iter(alphas))):
            ask(alphas)


def test_an_architecture_of_another_network_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="unknown sites elsewhere; allowed: stem, a, b"):
        SPACE.cost(Architecture("hand_made", (3, 8, 8), {"elsewhere": 0.5}))
