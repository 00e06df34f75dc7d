"""The networks that are retrained."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.nn.cost import cost
from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.retrain import plan
from octnas.pipeline.run import Run
from octnas.pipeline.search import chosen_by
from octnas.results.front import Front
from octnas.results.networks import (
    FRONT,
    NARROWER,
    PAPER,
    PLAIN,
    RANDOM,
    SEARCHED,
    SHALLOWER,
    SMALLER_IMAGES,
    VANILLA,
    WORST,
    Network,
)
from tests.pipeline.tiny import OFF, open_tiny

ROLES = "uniform,paper,increasing,random,worst,narrower,shallower,smaller images,vanilla"
ALL = f"retrain.baselines=[{ROLES}]"


@pytest.fixture(scope="module")
def searched(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as it was before anything was retrained."""
    path = tmp_path_factory.mktemp("controls")
    shutil.copytree(finished, path, dirs_exist_ok=True)
    open_tiny(path, OFF, ALL, fresh="retrain")
    return path


def networks(run: Run, role: str, budget: str) -> list[Network]:
    return [one for one in plan(run) if (one.role, one.budget) == (role, budget)]


def test_no_baseline_costs_less_than_the_searched_network(searched: Path) -> None:
    lines: list[str] = []
    run = open_tiny(searched, ALL, "retrain.randoms=3", lines=lines)
    found = plan(run)  # takes seconds, for the plain networks
    assert [one.name for one in found] == list(dict.fromkeys(one.name for one in found))
    for budget in run.budgets:
        (own,) = (one for one in found if (one.role, one.budget) == (SEARCHED, budget.name))
        assert own.architecture.id == read_chosen(run)[budget.name].id
        roles = [one.role for one in found if one.budget == budget.name]
        assert {PAPER, WORST, NARROWER, SMALLER_IMAGES} <= set(roles)
        assert roles.count(RANDOM) == 3
        for one in found:
            if one.budget == budget.name:
                assert one.cost == cost(one.architecture).cost
                assert one.cost.macs >= own.cost.macs
            if one.budget == budget.name and one.role not in PLAIN:
                assert one.architecture.stride_mode == run.space.stride_mode
    # ResNet-8 has one block in every stage.
    assert SHALLOWER not in {one.role for one in found}
    assert any("no shallower thumbnail_resnet" in line for line in lines)
    assert [one.role for one in found].count(VANILLA) == 1


def test_random_architectures_differ_and_depend_on_the_seed(searched: Path) -> None:
    randoms = ("retrain.baselines=[random]", "retrain.randoms=4")
    run = open_tiny(searched, *randoms)
    budget = run.budgets[0].name
    own = networks(run, SEARCHED, budget)[0].architecture.id
    first = [one.architecture.id for one in networks(run, RANDOM, budget)]
    assert len({own, *first}) == 5
    assert [one.architecture.id for one in networks(run, RANDOM, budget)] == first
    other = open_tiny(searched, *randoms, "retrain.seed=1")
    assert [one.architecture.id for one in networks(other, RANDOM, budget)] != first


def test_the_papers_network_keeps_stem_and_last_stage(searched: Path) -> None:
    run = open_tiny(searched, "retrain.baselines=[paper]")
    for budget in run.budgets:
        (found,) = networks(run, PAPER, budget.name)
        alphas = found.architecture.alphas
        ends = [name for name in alphas if name.startswith(("stem", "layer3"))]
        assert ends
        assert not any(alphas[name] for name in ends)
        assert any(alphas.values())


def test_the_worst_is_worse_than_the_chosen_by_the_same_scores(searched: Path) -> None:
    run = open_tiny(searched, "retrain.baselines=[worst]")
    known = {one.id: one.loss for one in read_candidates(run)}
    for budget in run.budgets:
        (worst,) = networks(run, WORST, budget.name)
        assert worst.architecture.id != read_chosen(run)[budget.name].id
        assert known.get(worst.architecture.id, 9.9) > read_chosen(run)[budget.name].loss


def test_the_whole_front_is_taken_once(searched: Path) -> None:
    run = open_tiny(searched, "retrain.select=front")
    found = plan(run)
    ids = {one.architecture.id for one in found}
    inside = [c for c in read_candidates(run) if any(c.fits(budget) for budget in run.budgets)]
    front = Front.of(inside, chosen_by(run)).candidates
    assert len(front) > 2
    assert {one.id for one in front} <= ids
    extra = [one for one in found if one.role == FRONT]
    assert len({one.architecture.id for one in extra}) == len(extra)
    assert {one.number for one in extra} == set(range(1, len(extra) + 1))
    slugs = [replace(one).slug for one in found]
    assert len(set(slugs)) == len(slugs)
