"""The experiment that learns distributions, made tiny, from its file to the chosen candidates."""

import shutil
from pathlib import Path

import pytest

from octnas.config import check_config, load_document
from octnas.errors import ConfigError, RunDirectoryError
from octnas.io.files import read_json, write_json
from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.pipeline.supernet import DISTRIBUTION_FILE, learned_proposals, read_distributions
from octnas.runtime.progress import Quiet
from octnas.space.distribution import expected_macs
from tests.pipeline.tiny import TINY, open_unlocked

EXPERIMENT = Path(__file__).parents[2] / "search_spaces" / "digits_learnable.yaml"
SMALL = ("supernet.recipe.epochs=4", "search.trials=24", "search.spread=2")


def open_learnable(path: Path, *overrides: str, fresh: str | None = None) -> Run:
    return open_unlocked(
        EXPERIMENT,
        overrides=(*TINY, *SMALL, "tracking.enabled=false", *overrides),
        run_dir=path / "runs" / "tiny",
        progress=Quiet([].append),
        fresh=fresh,
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Supernet and search, finished."""
    path = tmp_path_factory.mktemp("learned")
    run_stages(open_learnable(path), ("supernet", "search"))
    return open_learnable(path)


def test_a_distribution_for_every_budget_is_written(learned: Run) -> None:
    found = read_distributions(learned)
    assert [d.budget for d in found] == [budget.name for budget in learned.budgets]
    for distribution, budget in zip(found, learned.budgets, strict=True):
        assert set(distribution.probabilities) == {s.name for s in learned.space.searchable}
        assert all(sum(p) == pytest.approx(1) for p in distribution.probabilities.values())
        again = expected_macs(learned.space, distribution.probabilities)
        assert distribution.expected_macs == pytest.approx(again)
        assert distribution.macs == learned.space.cost(distribution.alphas).macs <= budget.max_macs


def test_the_search_begins_with_the_most_probable_and_goes_on_with_draws(learned: Run) -> None:
    candidates = read_candidates(learned)
    ids = {learned.space.architecture(d.alphas).id for d in read_distributions(learned)}
    first = candidates[: len(ids)]
    assert {candidate.id for candidate in first} == ids
    assert {candidate.origin for candidate in first} == {"learned"}
    drawn = [c for c in candidates[len(ids) :] if c.origin == "learned"]
    assert len(drawn) > 5
    largest = max(budget.max_macs for budget in learned.budgets)
    assert all(candidate.macs <= largest for candidate in drawn)
    assert list(read_chosen(learned)) == [budget.name for budget in learned.budgets]


def test_draws_follow_from_their_numbers(learned: Run) -> None:
    first, second = learned_proposals(learned), learned_proposals(learned)
    again = [second(number, [], ()) for number in reversed(range(12))][::-1]
    assert [first(number, [], ()) for number in range(12)] == again
    for number, alphas in enumerate(again):
        budget = learned.budgets[number % len(learned.budgets)]
        assert learned.space.cost(alphas).macs <= budget.max_macs


def test_any_sampler_may_follow_a_learnable_supernet(learned: Run, tmp_path: Path) -> None:
    shutil.copytree(learned.directory.path, tmp_path / "runs" / "tiny")
    run = open_learnable(tmp_path, "search.sampler=nsga2", "search.trials=14", fresh="search")
    run_stages(run, ("search",))
    origins = {candidate.origin for candidate in read_candidates(run)}
    assert "learned" in origins
    assert "nsga2" in origins


def test_a_distribution_of_another_schema_is_refused(learned: Run) -> None:
    path = learned.directory.stage("supernet") / DISTRIBUTION_FILE
    document = read_json(path)
    write_json(path, {**document, "schema": 99})
    try:
        with pytest.raises(RunDirectoryError, match="schema"):
            read_distributions(learned)
    finally:
        write_json(path, document)


def test_drawing_from_what_was_not_learned_is_refused_at_once() -> None:
    document = load_document(EXPERIMENT, ("supernet.sampling=by_macs",))
    with pytest.raises(
        ConfigError, match=r"search\.sampler: found 'learned', allowed: learned only"
    ):
        check_config(document)
