"""The table of latencies: what it predicts, what it refuses, and its file."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.errors import ArchitectureError, LatencyError, OctnasError
from octnas.space.cost_table import CostLevels
from octnas.space.latency import LatencyTable, LayerTimes, MeasuredNetwork, Quality, geometry_of
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures, search_spaces


def table_of(space: SearchSpace, seed: int = 0, **values: Any) -> LatencyTable:
    """A table of made-up times for a space's convolutions, and nothing else."""
    rng = np.random.default_rng(seed)
    layers = []
    for conv in space.convs:
        into = (0.0,) if conv.site_in is None else space.site[conv.site_in].choices
        out = space.site[conv.site_out].choices
        pairs = [(0.0, 0.0), *((a, b) for a in into for b in out)]
        seconds = {pair: float(rng.uniform(1e-5, 1e-3)) for pair in pairs}
        layers.append(LayerTimes(conv.name, conv.site_in, conv.site_out, seconds))
    about: dict[str, Any] = {
        "device": "machine",
        "backend": "eager",
        "precision": "float32",
        "batch": 1,
        "threads": 1,
        "geometry": geometry_of(space),
    }
    return LatencyTable(**about | values, layers=tuple(layers))


@given(search_spaces(), st.integers(0, 99), st.floats(-1e-4, 1e-2), st.floats(0.1, 3))
def test_predictions_are_the_sum_of_the_entries(
    space: SearchSpace, seed: int, constant: float, factor: float
) -> None:
    table = table_of(space, seed, constant=constant, factor=factor)
    allowed = (len(table.layers) + 1) * table.resolution * 1e-9
    for alphas in all_architectures(space):
        entries = [
            layer.seconds[
                0.0 if layer.site_in is None else alphas[layer.site_in], alphas[layer.site_out]
            ]
            for layer in table.layers
        ]
        expected = constant + factor * sum(entries)
        assert table.predict(space, alphas) == pytest.approx(expected, abs=allowed)


@given(search_spaces())
def test_levels_of_latency_are_exact(space: SearchSpace) -> None:
    table = table_of(space)
    levels = CostLevels(space, cost=table.cost(space))
    assert levels.exact
    predicted = sorted({round(table.predict(space, a) * 1e9) for a in all_architectures(space)})
    assert levels.populated.tolist() == predicted


def small(**kwargs: Any) -> SearchSpace:
    from octnas.nn.search_space import search_space

    defaults: dict[str, Any] = {"alphas": (0, 0.5), "fixed": {}}
    return search_space("thumbnail_resnet", (3, 16, 16), **defaults | kwargs)


def test_a_table_of_another_network_is_refused() -> None:
    space, table = small(), table_of(small())
    assert table.predict(space, {}) > 0
    assert table.predict(small(alphas=(0,)), {}) == table.predict(space, {})
    for other in (small(backbone_args={"channels": (4, 8, 8)}), small(stride_mode="paper")):
        with pytest.raises(LatencyError, match="is for another network"):
            table.predict(other, {})


def test_the_number_of_classes_is_no_part_of_the_geometry() -> None:
    assert geometry_of(small(backbone_args={"num_classes": 7})) == geometry_of(small())


def test_a_choice_that_was_not_measured_is_refused() -> None:
    table = table_of(small())
    with pytest.raises(LatencyError, match=r"lacks conv1 from α 0 to 0\.25; measure"):
        table.predict(small(alphas=(0, 0.25)), {})
    with pytest.raises(ArchitectureError, match=r"allowed: 0, 0\.5"):
        table.predict(small(), {"stem": 0.25})


def test_the_file_is_read_back() -> None:
    """A public format: what stands here must be readable for good."""
    quality = Quality(20, 0.02, 0.1, 0.9, 0.95, None, 0.5)
    networks = (MeasuredNetwork("fit", {"stem": 0.5}, 0.1, 0.1, 0.2),)
    sites = {"stem": {0.0: -1e-5, 0.5: 2e-5}}
    table = replace(table_of(small()), quality={"all": quality}, networks=networks, sites=sites)
    document = json.loads(json.dumps(table.to_dict()))
    assert LatencyTable.from_dict(document) == table
    assert document["schema"] == 2
    assert set(document) == {
        *("schema", "device", "backend", "precision", "batch", "threads", "geometry"),
        *("constant", "factor", "layers", "sites", "quality", "networks"),
    }
    assert set(document["layers"][0]) == {"name", "site_in", "site_out", "seconds"}


def test_a_file_that_knows_of_no_sites_is_read() -> None:
    table = table_of(small())
    document = json.loads(json.dumps(table.to_dict()))
    del document["sites"]
    assert LatencyTable.from_dict({**document, "schema": 1}) == table


@given(search_spaces(), st.integers(0, 99))
def test_a_site_takes_its_time_besides(space: SearchSpace, seed: int) -> None:
    rng, table = np.random.default_rng(seed), table_of(space, seed)
    sites = {
        site.name: {alpha: float(rng.uniform(-1e-4, 1e-4)) for alpha in site.choices}
        for site in space.sites
    }
    with_sites = replace(table, sites=sites)
    # Each entry is rounded, in the one as in the other.
    count = 2 * len(table.layers) + len(sites) + 2
    allowed = count * max(table.resolution, with_sites.resolution) * 1e-9
    for alphas in all_architectures(space):
        expected = table.predict(space, alphas) + sum(sites[n][a] for n, a in alphas.items())
        assert with_sites.predict(space, alphas) == pytest.approx(expected, abs=allowed)
    vanilla = with_sites.cost(space).vanilla - table.cost(space).vanilla
    zeros = sum(times.get(0.0, 0.0) for times in sites.values())
    assert vanilla * 1e-9 == pytest.approx(zeros, abs=allowed)


def test_a_site_that_the_network_does_not_have_is_refused() -> None:
    table = replace(table_of(small()), sites={"layer9": {0.0: 0.0}})
    with pytest.raises(LatencyError, match="lacks, at layer9; measure"):
        table.predict(small(), {})


def spoil(key: str, value: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(table_of(small()).to_dict())), key: value}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        spoil("schema", 3),
        spoil("sites", {"stem": []}),
        spoil("sites", {"stem": [[0.0, float("nan")]]}),
        spoil("sites", {"stem": [0.0]}),
        spoil("sites", 3),
        spoil("layers", []),
        spoil("layers", [{}]),
        spoil("layers", 3),
        spoil("layers", [{"name": "a", "site_in": None, "site_out": "b", "seconds": [[0, 0]]}]),
        spoil("layers", [{"name": "a", "site_in": None, "site_out": "b", "seconds": [[0, 0, -1]]}]),
        spoil("factor", 0),
        spoil("factor", "fast"),
        spoil("constant", float("nan")),
        spoil("batch", 0),
        spoil("batch", -3),
        spoil("threads", -1),
        spoil("quality", {"all": {"networks": 3}}),
        spoil("networks", [{"use": "fit"}]),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(document: Any) -> None:
    with pytest.raises(OctnasError) as caught:
        LatencyTable.from_dict(document)
    assert str(caught.value).startswith("latency table: ")
    assert "\n" not in str(caught.value)


def slow(**values: Any) -> dict[str, Any]:
    """A table whose layers take 1,000 seconds each."""
    document = spoil("schema", 2) | values
    for layer in document["layers"]:
        layer["seconds"] = [[*pair, 1e3] for *pair, _ in layer["seconds"]]
    return document


@pytest.mark.parametrize(
    "values",
    [
        {"factor": 1e6},
        {"factor": 1e6, "constant": -1e6},
        {"constant": 1e6},
        {"constant": -1e6},
        {"sites": {"stem": [[0.0, 6e5]], "layer1": [[0.0, -6e5], [0.5, 0.0]]}},
    ],
)
def test_a_table_of_more_than_any_network_takes_is_refused(values: dict[str, Any]) -> None:
    """Each number is allowed, but nanoseconds in 64 bits end at 292 years."""
    assert LatencyTable.from_dict(slow()).predict(small(), {}) > 1e3
    with pytest.raises(LatencyError, match=r"^latency table: networks could take .* up to 1e\+06$"):
        LatencyTable.from_dict(slow(**values))
