"""The best architecture within bounds on any cost, against brute force."""

import numpy as np
import pytest
from hypothesis import given

from octnas.additive import AdditiveCost
from octnas.levels import CostLevels
from octnas.optimum import best_within
from tests.conftest import all_architectures
from tests.test_additive import other_costs


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
