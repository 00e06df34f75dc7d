"""A search under budgets on latency and activation memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octnas.errors import ConfigError, RunDirectoryError
from octnas.io.files import write_json
from octnas.measure import latency as measure
from octnas.pipeline import latency as latency_stage
from octnas.pipeline import search as stage
from octnas.pipeline.latency import experiment_space
from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.retrain import plan
from octnas.pipeline.so_far import candidates_so_far, chosen_so_far
from octnas.pipeline.stages import run_stages
from octnas.results.front import Front
from octnas.results.networks import SEARCHED
from octnas.search.surrogate import EXPECTED
from octnas.space.budgets import costs_of
from tests.pipeline.tiny import BRIEF, EXPERIMENT, OFF, TINY, open_tiny
from tests.space.test_latency import table_of

BUDGETS = (
    "space.budgets=[{latency_share: 0.9}, {activation_share: 0.7}, {uniform: 0.5}, "
    "{peak_share: 0.7}, {share: 0.8, activation_share: 0.8, peak_share: 0.8}]"
)
STAGES = ("supernet", "search")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of made-up times for the tiny experiment."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    write_json(path, table_of(experiment_space(EXPERIMENT, TINY), device="made up").to_dict())
    return path


def test_budgets_on_other_costs_are_searched(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    controls = "retrain.baselines=[uniform,increasing,random,worst,vanilla]"
    settings = (BUDGETS, f"latency.table={table}", controls, OFF, BRIEF)
    run = open_tiny(tmp_path, *settings, lines=lines, stages=STAGES)
    run_stages(run, STAGES)
    latency = run.costs["latency"]
    for candidate in read_candidates(run):
        assert candidate.cost("latency") == latency.of(candidate.alphas)
        assert candidate.cost("activation") == run.space.cost(candidate.alphas).activation_bytes
        assert candidate.cost("macs") == candidate.macs
    for budget in run.budgets:
        found = read_chosen(run)[budget.name]
        assert found.fits(budget)
        assert found.metrics["measured_latency"] > 0
        inside = [one for one in read_candidates(run) if one.fits(budget)]
        assert found.id == min(inside, key=lambda one: one.metrics[EXPECTED]).id
        for bound in budget.bounds:
            assert found.cost(bound.cost) == run.costs[bound.cost].of(found.alphas) <= bound.upper
    assert any("ms predicted" in line and "ms measured" in line for line in lines)
    # What goes on elsewhere measures anew.
    monkeypatch.setattr(latency_stage, "machine_name", lambda _: "an other/machine")
    monkeypatch.setattr(measure, "machine_name", lambda _: "an other/machine")
    latency_stage.measure_chosen(run, read_chosen(run))
    kept = [one.name for one in run.directory.stage("search").glob("latency-*.jsonl")]
    assert len(kept) == 2
    assert "latency-an-other-machine.measured.jsonl" in kept
    finished = run.directory.stage("search") / "stage.json"
    finished.rename(tmp_path / "finished")
    found = candidates_so_far(run)
    assert {one.id for one in found} == {one.id for one in read_candidates(run)}
    assert chosen_so_far(run, found).keys() == {budget.name for budget in run.budgets}
    (tmp_path / "finished").rename(finished)
    networks, finer = plan(run), costs_of(run.space.refined(32))
    assert {network.budget for network in networks} == {"", *(b.name for b in run.budgets)}
    for budget in run.budgets[:2]:
        assert budget.bound is not None
        name, alphas = budget.bound.cost, read_chosen(run)[budget.name].alphas
        cost = finer.get(name, run.costs[name])
        held = [one for one in networks if one.budget == budget.name and one.role != SEARCHED]
        assert {one.role for one in held} == {"uniform", "increasing", "random", "worst"}
        for one in held:
            # As dear as what was searched, in what the budget bounds.
            assert cost.of(one.architecture.alphas) >= cost.of(alphas)
    # The run has taken the table over, but says so if the file is another one now.
    write_json(table, table_of(run.space, seed=1).to_dict())
    with pytest.raises(RunDirectoryError, match=r"latency\.table: was"):
        open_tiny(tmp_path, *settings, stages=STAGES)


def test_a_device_that_is_not_there_is_said_before_anything_is_trained(
    table: Path, tmp_path: Path
) -> None:
    write_json(table, table_of(experiment_space(EXPERIMENT, TINY), device="made up").to_dict())
    settings = (BUDGETS, f"latency.table={table}", "latency.device=cuda:99")
    with pytest.raises(ConfigError, match=r"latency\.device: found 'cuda:99'"):
        run_stages(open_tiny(tmp_path, *settings, stages=("data",)), ("data",))


@pytest.mark.parametrize("sampler", ["surrogate", pytest.param("nsga2", marks=pytest.mark.slow)])
def test_latency_is_made_small_beside_the_loss(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "table.json"
    write_json(own, table_of(experiment_space(EXPERIMENT, TINY), device="made up").to_dict())
    run = open_tiny(
        tmp_path,
        "space.budgets=[{latency_share: 0.9}, {latency_share: 0.7}]",
        f"latency.table={own}",
        "latency.measure=false",
        *(OFF, BRIEF),
        f"search.sampler={sampler}",
        stages=STAGES,
    )
    trials: list[Any] = []
    original = stage.opened

    @contextmanager
    def opened(*args: Any) -> Iterator[Any]:
        with original(*args) as storage:
            yield storage
            (study,) = storage.get_all_studies()
            trials.extend(storage.get_all_trials(study._study_id))

    monkeypatch.setattr(stage, "opened", opened)
    run_stages(run, STAGES)
    latency, bound = run.costs["latency"], run.budgets[0].bound
    assert bound is not None
    assert len(trials) == 20
    for trial in trials:
        assert trial.values[1] == latency.of(run.space.quantize(trial.params))
        excess = (trial.values[1] - bound.upper) / latency.vanilla
        assert trial.constraints["max_latency"] == pytest.approx(excess)
    for candidate in read_candidates(run):
        assert candidate.macs == run.space.cost(candidate.alphas).macs
        if candidate.origin == "surrogate":
            assert latency.of(candidate.alphas) <= bound.upper


@pytest.mark.slow
def test_the_front_is_over_what_is_made_small(tmp_path: Path) -> None:
    own = tmp_path / "table.json"
    write_json(own, table_of(experiment_space(EXPERIMENT, TINY), device="made up").to_dict())
    settings = (
        "space.budgets=[{latency_share: 0.9}]",
        f"latency.table={own}",
        "latency.measure=false",
        *(OFF, BRIEF),
        "retrain.select=front",
        "search.trials=40",
    )
    lines: list[str] = []
    run = open_tiny(tmp_path, *settings, lines=lines, stages=STAGES)
    run_stages(run, STAGES)
    inside = [one for one in read_candidates(run) if one.fits(run.budgets[0])]
    front = Front.of(inside, EXPECTED, "latency")
    # By MACs it would be another one.
    assert {one.id for one in front.candidates} != {
        one.id for one in Front.of(inside, EXPECTED).candidates
    }
    found = [one for one in plan(run) if one.role in ("searched", "front")]
    assert {one.architecture.id for one in found} == {one.id for one in front.candidates}
    whole = Front.of(read_candidates(run), cost="latency")
    assert any(f"{len(whole.candidates)} on the front" in line for line in lines)


def test_what_is_made_small_is_what_all_budgets_bound(tmp_path: Path) -> None:
    own = tmp_path / "table.json"
    write_json(own, table_of(experiment_space(EXPERIMENT, TINY), device="made up").to_dict())
    latency = f"latency.table={own}"
    for budgets, expected in (
        ("[{latency_share: 0.9}]", "latency"),
        ("[{activation_share: 0.9}, {activation_share: 0.7}]", "activation"),
        ("[{activation_share: 0.9}, {latency_share: 0.7}]", "macs"),
        ("[{uniform: 0.5}]", "macs"),
    ):
        run = open_tiny(tmp_path / expected, f"space.budgets={budgets}", latency)
        assert run.config.objective == expected
        # Runs from before it could be chosen made MACs small.
        assert run.fingerprint("search").get("search.objective", "macs") == expected
    with pytest.raises(ConfigError, match="found 'activation', allowed: auto or macs; activ"):
        open_tiny(tmp_path, "search.objective=activation")


def test_runs_without_a_table_measure_nothing(finished: Path) -> None:
    run = open_tiny(finished)
    assert run.table is None
    for candidate in read_chosen(run).values():
        assert "latency" not in candidate.metrics
        assert "measured_latency" not in candidate.metrics
        assert candidate.cost("activation") > 0
