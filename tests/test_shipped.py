"""The shipped experiments that are not trained in tests: what they search, and what it costs."""

import pytest

from octnas.budgets import check_budgets
from octnas.config import RunConfig
from octnas.data.settings import DigitsSettings
from octnas.levels import CostLevels
from octnas.pipeline.space import space_of
from octnas.shipped import shipped_experiments
from octnas.space import SearchSpace
from tests.loading import load_config

SHIPPED = {path.stem: path for path in shipped_experiments()}
# Sites; GMACs at uniform α = .5, .25 and .125 (the paper's networks, see tests/nn/test_published).
IMAGENET = {
    "resnet50": (29, (2.367, 3.104, 3.565)),
    "resnet101": (63, (3.991, 5.598, 6.625)),
    "resnet152": (97, (5.615, 8.092, 9.685)),
}


def shipped(name: str) -> tuple[RunConfig, SearchSpace]:
    """An experiment and its space; of 1,000 classes, but for the digits."""
    config = load_config(SHIPPED[name])
    return config, space_of(config, 10 if isinstance(config.data, DigitsSettings) else 1000)


def test_what_is_shipped() -> None:
    assert set(SHIPPED) == {
        "digits",
        "digits_learnable",
        "tiny_imagenet",
        "tiny_imagenet_16",
        *IMAGENET,
    }


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_budget_can_be_met(name: str) -> None:
    config, space = shipped(name)
    budgets = [budget.resolve(space) for budget in config.space.budgets]
    levels = CostLevels(space)
    check_budgets(budgets, levels)
    for budget in budgets:
        # A budget that admits next to nothing would leave nothing to search.
        assert 1e3 < levels.count(0, budget.max_macs) < space.size


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_imagenet_budgets_are_the_papers_networks(name: str) -> None:
    config, space = shipped(name)
    sites, gmacs = IMAGENET[name]
    assert len(space.searchable) == sites
    found = [budget.resolve(space).max_macs / 1e9 for budget in config.space.budgets]
    assert tuple(round(macs, 3) for macs in found) == gmacs


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_every_alpha_is_a_choice_of_its_own(name: str) -> None:
    """Low channels are rounded to multiples of 8: .125 of 64 is the smallest that stays apart."""
    _, space = shipped(name)
    assert all(site.choices == space.grid for site in space.searchable)
