"""Latency tables: what is measured, what is kept, and what is fitted; nothing about how long."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octnas.errors import LatencyError, MeasureError, SettingError
from octnas.measure import latency as latency_module
from octnas.measure.deployed_layers import materialise, plan_layers
from octnas.measure.latency import (
    CHECK,
    FIT,
    NARROW,
    draw_networks,
    fit_table,
    measure_table,
    qualities,
)
from octnas.measure.settings import LatencySettings
from octnas.nn.search_space import search_space
from octnas.space.cost_table import CostLevels
from octnas.space.latency import LatencyTable, MeasuredNetwork, geometry_of
from octnas.space.search_space import SearchSpace

SMALL = LatencySettings(name="here", repeats=4, networks=3, narrow=2, fit=3)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    args = {"layers": [1, 1, 1], "channels": [4, 8, 8]}
    return search_space("thumbnail_resnet", (1, 8, 8), (0, 0.5), backbone_args=args, fixed={})


@pytest.fixture(scope="module")
def made_up(space: SearchSpace) -> LatencyTable:
    """A table whose entries are the MACs' cost, so that a truth can be made of it."""
    plan = plan_layers(space, 1)
    rng = np.random.default_rng(0)
    seconds = {key: float(rng.uniform(1e-4, 1e-3)) for key in plan.modules}
    return LatencyTable(
        device="here",
        backend="eager",
        precision="float32",
        batch=1,
        threads=1,
        geometry=geometry_of(space),
        layers=tuple(layer.times(seconds) for layer in plan.layers),
    )


def test_every_pair_of_choices_is_planned_once(space: SearchSpace) -> None:
    plan = plan_layers(space, 2)
    for layer in plan.layers:
        site = layer.site
        into = (0.0,) if site.site_in is None else space.site[site.site_in].choices
        assert set(layer.keys) == {(a, b) for a in into for b in space.site[site.site_out].choices}
    used = [key for layer in plan.layers for key in layer.keys.values()]
    assert set(used) == set(plan.modules)
    assert len(plan.modules) < len(used)
    assert all(layer.inputs[0][0] == 2 for layer in plan.modules.values())


def test_vanilla_layers_are_planned_where_zero_is_no_choice() -> None:
    space = search_space("thumbnail_resnet", (3, 16, 16), (0.25, 0.5), fixed={})
    assert all((0.0, 0.0) in layer.keys for layer in plan_layers(space, 1).layers)


def test_planned_layers_compute_finite_numbers(space: SearchSpace) -> None:
    for layer in plan_layers(space, 1).modules.values():
        module, inputs = materialise(layer)
        with torch.inference_mode():
            assert all(bool(part.isfinite().all()) for part in module(*inputs))


def test_networks_are_spread_and_none_is_for_two_uses(
    space: SearchSpace, made_up: LatencyTable
) -> None:
    cost = made_up.cost(space)
    settings = replace(SMALL, networks=8, narrow=5, fit=6)
    drawn = draw_networks(cost, settings)
    assert drawn == draw_networks(cost, settings)
    assert len({tuple(alphas.values()) for _, alphas in drawn}) == len(drawn)
    levels = CostLevels(space, cost=cost)
    middle = (levels.smallest + levels.largest) / 2
    by_use = {use: [cost.of(a) for u, a in drawn if u == use] for use in (FIT, CHECK, NARROW)}
    assert all(abs(value / middle - 1) <= settings.width / 2 for value in by_use[NARROW])
    for use, count in ((FIT, 6), (CHECK, 8)):
        assert 4 <= len(by_use[use]) <= count
        assert max(by_use[use]) - min(by_use[use]) > (levels.largest - levels.smallest) / 2


def measured(
    space: SearchSpace, table: LatencyTable, constant: float, factor: float, noise: float = 0.0
) -> list[MeasuredNetwork]:
    cost, rng = table.cost(space), np.random.default_rng(0)
    found = []
    for use, alphas in draw_networks(cost, replace(SMALL, fit=8, networks=8, narrow=6)):
        true = constant + factor * cost.of(alphas) * 1e-9
        one, two = (true * float(np.exp(rng.normal(0, noise))) for _ in range(2))
        found.append(MeasuredNetwork(use, alphas, (one + two) / 2, one, two))
    return found


def test_constant_and_factor_are_found(space: SearchSpace, made_up: LatencyTable) -> None:
    table = fit_table(made_up, space, measured(space, made_up, 2e-4, 0.8))
    assert table.constant == pytest.approx(2e-4, rel=1e-3)
    assert table.factor == pytest.approx(0.8, rel=1e-3)
    for name in ("all", "narrow"):
        assert table.quality[name].error < 1e-3
    assert table.quality["all"].tau == pytest.approx(1.0, abs=0.02)
    assert table.quality["all"].ceiling == 1.0
    assert table.quality["all"].networks > table.quality["narrow"].networks
    assert table.quality["narrow"].width < table.quality["all"].width


def test_what_lies_between_layers_is_found_where_it_comes_again(
    space: SearchSpace, made_up: LatencyTable
) -> None:
    """Of a space's 128 architectures, half to fit to and half to hold it against."""
    cost, rng = made_up.cost(space), np.random.default_rng(0)
    drawn = draw_networks(cost, replace(SMALL, fit=40, networks=40, narrow=10))
    scale = np.mean([cost.of(alphas) * 1e-9 for _, alphas in drawn])
    times = {s.name: rng.normal(0, 0.05 * scale, len(s.choices)) for s in space.searchable}
    errors = {}
    for noise, size in ((0.0, 1.0), (0.05, 0.0)):
        networks = []
        for use, alphas in drawn:
            between = sum(times[s.name][s.choices.index(alphas[s.name])] for s in space.searchable)
            true = cost.of(alphas) * 1e-9 + size * between
            seconds = true * float(np.exp(rng.normal(0, noise)))
            networks.append(MeasuredNetwork(use, alphas, seconds, seconds, seconds))
        table = fit_table(made_up, space, networks)
        without = replace(table, sites={})
        errors[size] = [one.quality["all"].error for one in (table, _judged(without, space))]
    # What is systematic goes, but for what the penalty keeps; noise is not learned.
    found, before = errors[1.0]
    assert found < 0.5 * before
    assert before > 0.01
    found, before = errors[0.0]
    assert found < 1.2 * before


def _judged(table: LatencyTable, space: SearchSpace) -> LatencyTable:
    return replace(table, quality=qualities(table, space, table.networks))


def test_few_networks_tell_no_sites_apart(space: SearchSpace, made_up: LatencyTable) -> None:
    table = fit_table(made_up, space, measured(space, made_up, 2e-4, 0.8))
    assert sum(one.use == FIT for one in table.networks) < 10
    assert table.sites == {}


def test_what_is_fitted_to_is_not_reported(space: SearchSpace, made_up: LatencyTable) -> None:
    networks = measured(space, made_up, 2e-4, 0.8)
    spoilt = [one if one.use == FIT else replace(one, seconds=10 * one.seconds) for one in networks]
    table = fit_table(made_up, space, spoilt)
    assert table.factor == pytest.approx(0.8, rel=1e-3)
    assert table.quality["all"].error == pytest.approx(0.9, rel=1e-2)
    assert table.quality["all"].networks == sum(one.use != FIT for one in networks)


def test_noise_shows_in_the_ceiling(space: SearchSpace, made_up: LatencyTable) -> None:
    table = fit_table(made_up, space, measured(space, made_up, 0.0, 1.0, noise=0.3))
    ceiling = table.quality["narrow"].ceiling
    assert ceiling is not None
    assert ceiling < 0.8


def test_a_machine_that_is_too_noisy_is_said_so(space: SearchSpace, made_up: LatencyTable) -> None:
    networks = [replace(one, seconds=1 / one.seconds) for one in measured(space, made_up, 0.0, 1.0)]
    with pytest.raises(MeasureError, match="too noisy"):
        fit_table(made_up, space, networks)
    with pytest.raises(MeasureError, match="found 0 networks to fit"):
        fit_table(made_up, space, [])


def test_a_table_is_measured_and_gone_on_with(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_module, "fit_table", lambda table, _, networks: (table, networks))
    kept, lines = tmp_path / "kept.jsonl", []
    measured: Any = measure_table(space, SMALL, kept, lines.append)
    networks = measured[1]
    assert {one.use for one in networks} == {FIT, CHECK, NARROW}
    assert all(one.seconds > 0 for one in networks)
    whole = kept.read_text().splitlines()
    kept.write_text("\n".join(whole[: len(whole) // 2]) + "\n" + whole[-1][:7])
    again: Any = measure_table(space, SMALL, kept)
    assert len(again[1]) == len(networks)
    assert kept.read_text().splitlines()[: len(whole) // 2] == whole[: len(whole) // 2]
    # Which networks are drawn goes by the layers' times, however slow the machine was since.
    layers = len(whole) - 1 - len(networks)
    head, *entries = [json.loads(line) for line in kept.read_text().splitlines()]
    for number, entry in enumerate(entries[:layers]):
        entry["seconds"] = 1.0 + number / layers
    _rewrite(kept, [head, *entries])
    again = measure_table(space, SMALL, kept)
    head, *entries = [json.loads(line) for line in kept.read_text().splitlines()]
    for entry in entries[layers:]:
        entry["seconds"] = 9.0
    _rewrite(kept, [head, *entries])
    monkeypatch.setattr(latency_module, "inference", None)
    last: Any = measure_table(space, SMALL, kept)
    assert last[0] == again[0]
    assert [one.alphas for one in last[1]] == [one.alphas for one in again[1]]


def _rewrite(file: Path, documents: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))


def test_what_was_kept_of_other_settings_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    conditions = {"name": "here", "device": "cpu", "geometry": geometry_of(space)}
    head = {"schema": 1, "conditions": {**conditions, "backend": "onnxruntime"}}
    kept.write_text(json.dumps(head) + "\n")
    with pytest.raises(LatencyError, match=r"with backend 'onnxruntime', now 'eager'; remove it"):
        measure_table(space, SMALL, kept)
    for nonsense in ("nonsense\n", "[]\n", '{"schema": 9, "conditions": {}}\n'):
        kept.write_text(nonsense)
        with pytest.raises(LatencyError) as caught:
            measure_table(space, SMALL, kept)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backend", "tvm"),
        ("precision", "int8"),
        ("batch", 0),
        ("threads", -1),
        ("repeats", 3),
        ("fit", 1),
        ("networks", -1),
        ("narrow", -1),
        ("width", 0.0),
    ],
)
def test_settings_that_make_no_sense(key: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{key}: found "):
        replace(SMALL, **{key: value})


@pytest.mark.parametrize("key", ["device", "precision"])
def test_engines_take_the_cpu_and_float32(key: str) -> None:
    with pytest.raises(SettingError, match=f"^{key}: found "):
        LatencySettings(backend="openvino", **{key: {"device": "cuda"}.get(key, "bfloat16")})


def test_the_standalone_file_loads_nothing_of_octnas() -> None:
    from octnas.measure import standalone

    program = f"""
import sys
sys.path = [entry for entry in sys.path if entry]
sys.modules["octnas"] = sys.modules["torch"] = sys.modules["onnxruntime"] = None
import runpy
runpy.run_path({str(Path(standalone.__file__))!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
