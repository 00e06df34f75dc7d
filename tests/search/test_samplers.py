from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from octnas.results.front import Candidate, Front
from octnas.search.samplers import (
    _front,
    initial_design,
    random_proposals,
    surrogate_proposals,
)
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.study import Driver, run_local
from octnas.space.budgets import BudgetSettings, Region, costs_of, regions
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures
from tests.search.conftest import Make, table
from tests.search.small import loss_of


def evaluated(space: SearchSpace, budget: Budget, count: int) -> list[Candidate]:
    design = initial_design(space, CostLevels(space), [budget], count, 0)
    return [
        Candidate(
            space.architecture(alphas).id, alphas, space.cost(alphas).macs, loss_of(alphas)["loss"]
        )
        for _, alphas in design
    ]


def test_random_is_even_among_the_architectures_inside_the_budget(
    space: SearchSpace, budget: Budget
) -> None:
    levels = CostLevels(space)
    low, high = budget.max_macs * 9 // 10, budget.max_macs
    propose = random_proposals([Region(levels, low, high)], seed=0)
    inside = [a for a in all_architectures(space) if low <= space.cost(a).macs <= high]
    assert 20 < len(inside) < 400
    drawn = Counter(tuple(propose(n, [], ()).values()) for n in range(8 * len(inside)))
    counts = [drawn[tuple(alphas.values())] for alphas in inside]
    assert sum(counts) == 8 * len(inside)
    assert chisquare(counts).pvalue > 1e-4


def test_the_surrogate_proposes_nothing_twice(space: SearchSpace, budget: Budget) -> None:
    propose = surrogate_proposals(regions(space, [budget], costs_of(space)), seed=0)
    told = evaluated(space, budget, 8)
    taken = {space.key(candidate.alphas) for candidate in told}
    for number in range(30):
        alphas = propose(number, told, taken)
        assert budget.admits(space.cost(alphas).macs)
        assert space.key(alphas) not in taken
        taken.add(space.key(alphas))


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_the_surrogate_proposes_something_new_where_all_losses_are_equal(
    space: SearchSpace, budget: Budget, loss: float
) -> None:
    propose = surrogate_proposals(regions(space, [budget], costs_of(space)), seed=0)
    told = [replace(candidate, loss=loss) for candidate in evaluated(space, budget, 8)]
    taken = {space.key(candidate.alphas) for candidate in told}
    found = propose(20, told, taken)
    assert space.key(found) not in taken


def test_the_surrogate_repeats_itself_where_everything_was_proposed(
    space: SearchSpace, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octnas.search.samplers._MOST_TRIES", 100)
    propose = surrogate_proposals(regions(space, [budget], costs_of(space)), seed=0)
    told = evaluated(space, budget, 8)
    taken = {space.key(alphas) for alphas in all_architectures(space)}
    assert budget.admits(space.cost(propose(0, told, taken)).macs)


@pytest.mark.parametrize("left", [1, 3])
def test_the_last_new_architectures_inside_a_budget_are_found(
    space: SearchSpace, budget: Budget, left: int
) -> None:
    """The models' fronts are all taken, and hardly anything else is new."""
    propose = surrogate_proposals(regions(space, [budget], costs_of(space)), seed=0)
    told = evaluated(space, budget, 8)
    inside = [
        space.key(alphas)
        for alphas in all_architectures(space)
        if budget.admits(space.cost(alphas).macs)
    ]
    assert len(inside) > 300
    for seed in range(2):
        new = np.random.default_rng(seed).choice(len(inside), left, replace=False)
        taken = set(inside) - {inside[index] for index in new}
        found = propose(seed, told, taken)
        assert space.key(found) in set(inside) - taken


def test_the_surrogate_finds_the_best_of_an_additive_score(
    make_driver: Make, space: SearchSpace, budget: Budget
) -> None:
    """With few trials, where drawing evenly does not come near it."""
    best = min(
        loss_of(alphas)["loss"]
        for alphas in all_architectures(space)
        if budget.admits(space.cost(alphas).macs)
    )
    found: dict[Sampler, float] = {}
    samplers: tuple[Sampler, ...] = ("surrogate", "random")
    for sampler in samplers:
        settings = SearchSettings(trials=48, batch_size=8, spread=8, sampler=sampler)
        driver = make_driver(settings, folder=sampler)
        run_local(driver, loss_of)
        inside = [c.loss for c in driver.candidates() if budget.admits(c.macs)]
        found[sampler] = min(inside)
    assert found["surrogate"] == pytest.approx(best)
    assert found["random"] > best


def test_budgets_on_other_costs_get_their_share_of_the_search(space: SearchSpace) -> None:
    """At the same MACs, an architecture within both bounds scores worse than one within one."""
    costs = costs_of(space)
    one, both = (
        BudgetSettings(**bounds).resolve(space, costs)  # type: ignore[arg-type]
        for bounds in ({"share": 0.6}, {"share": 0.6, "activation_share": 0.45})
    )
    found = regions(space, [one, both], costs)
    best = [
        min(loss_of(a)["loss"] for a in all_architectures(space) if region.admits(a))
        for region in found
    ]
    assert best[0] != best[1]
    propose, told = surrogate_proposals(found, seed=0), evaluated(space, one, 8)
    for number in range(8, 48):
        alphas = propose(number, told, {space.key(other.alphas) for other in told})
        architecture = space.architecture(alphas)
        macs, loss = space.cost(alphas).macs, loss_of(alphas)["loss"]
        told.append(Candidate(architecture.id, alphas, macs, loss))
    for region, expected in zip(found, best, strict=True):
        # Taking one region's front for both, the second budget's best was 24.5 instead of 11.
        assert min(o.loss for o in told if region.admits(o.alphas)) < 1.1 * expected


def test_a_learned_search_evaluates_what_is_drawn(make_driver: Make, space: SearchSpace) -> None:
    """Every number has its draw, in one go or broken off in between."""

    def propose(number: int, *_: object) -> dict[str, float]:
        rng = np.random.default_rng(number)
        return {site.name: float(rng.choice(site.choices)) for site in space.sites}

    settings = SearchSettings(trials=20, batch_size=4, spread=0, sampler="learned")

    def make(folder: str) -> Driver:
        return make_driver(settings, folder=folder, propose=propose)

    whole = make("whole")
    run_local(whole, loss_of)
    found = whole.candidates()
    drawn = [c for c in found if c.origin == "learned"]
    assert len(drawn) == len(found) - len(space.alphas)
    assert [c.alphas for c in drawn] == [propose(c.trial) for c in drawn]
    begun = make("parts")
    for _ in range(6):
        job = begun.ask()
        assert job is not None
        if job.number != 5:
            begun.tell(job.number, loss_of(job.alphas))
    again = make("parts")
    run_local(again, loss_of)
    assert table(again.candidates()) == table(found)


def apart(space: SearchSpace) -> list[tuple[int, int]]:
    """Two ranges with a gap, in shares of the vanilla network's MACs."""
    shares = ((0.35, 0.45), (0.8, 0.9))
    return [
        (round(low * space.vanilla_macs), round(high * space.vanilla_macs)) for low, high in shares
    ]


def test_random_ones_lie_inside_one_of_several_ranges_evenly(space: SearchSpace) -> None:
    levels, within = CostLevels(space), apart(space)
    propose = random_proposals([Region(levels, *ends) for ends in within], seed=0)
    macs = [space.cost(propose(number, [], ())).macs for number in range(400)]
    inside = [sum(low <= one <= high for one in macs) for low, high in within]
    assert sum(inside) == 400
    counts = [levels.count(low, high) for low, high in within]
    share = counts[0] / sum(counts)
    # Four standard deviations of a binomial share.
    assert abs(inside[0] / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400)


def test_the_surrogate_keeps_out_of_the_gap(space: SearchSpace) -> None:
    levels, within = CostLevels(space), apart(space)
    propose = surrogate_proposals([Region(levels, *ends) for ends in within], seed=0)
    told, taken = [], set()
    for number in range(40):
        alphas = propose(number, told, taken)
        identity, macs = space.architecture(alphas).id, space.cost(alphas).macs
        assert any(low <= macs <= high for low, high in within)
        taken.add(space.key(alphas))
        told = [*told, Candidate(identity, alphas, macs, loss_of(alphas)["loss"])]
    assert len(taken) == 40
    assert all(any(low <= one.macs <= high for one in told) for low, high in within)


def test_the_front_of_known_candidates_is_that_of_all(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 9, 60).astype(float)
    values = rng.integers(0, 9, 60) - 2 * costs
    points = [
        Candidate(str(index), {}, int(cost), value)
        for index, (cost, value) in enumerate(zip(costs, values, strict=True))
    ]
    expected = Front.of(points).candidates
    assert _front(costs, values) == [(one.macs, one.loss) for one in expected]
    assert len(expected) > 2
