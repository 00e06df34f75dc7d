"""Tests."""

import math
import re
from dataclasses import replace
from itertools import islice

import pytest

from octnas.errors import BudgetError, SettingError
from octnas.nn.search_space import search_space
from octnas.pipeline.fingerprints import fingerprint
from octnas.results.networks import INCREASING, UNIFORM, VANILLA, baseline, searched
from octnas.settings import flatten
from octnas.space.budgets import BudgetSettings, check_budgets, costs_of, region
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from tests.conftest import all_architectures
from tests.loading import load_config
from tests.pipeline.tiny import EXPERIMENT
from tests.space.test_latency import small, table_of


@pytest.fixture(scope="module")
def resnet50() -> SearchSpace:
    return search_space("resnet50", (3, 224, 224), (0, 0.125, 0.25, 0.5, 0.75))


def test_budgets_in_macs(resnet50: SearchSpace) -> None:
    uniform = BudgetSettings(uniform=0.5).resolve(resnet50)
    assert round(uniform.max_macs / 1e9, 3) == 2.367
    assert (uniform.uniform, uniform.name) == (0.5, "uniform α 0.5")
    share = BudgetSettings(share=0.65, min_share=0.5).resolve(resnet50)
    assert share.max_macs == int(0.65 * resnet50.vanilla_macs)
    assert share.min_macs == round(0.5 * resnet50.vanilla_macs)
    macs, flops = (BudgetSettings(**{key: 3e9}).resolve(resnet50) for key in ("macs", "flops"))
    assert macs == flops == Budget("3,000,000,000 MACs", 3_000_000_000)


@pytest.mark.parametrize(
    "given",
    [
        *({}, {"uniform": 0.5, "share": 0.5}, {"uniform": 1.5}, {"macs": 0}, {"share": -1}),
        *({"share": 0.5, "macs": 9}, {"peak_mb": 1, "peak_share": 1}),
        *(
            {"share": 0.5, "macs": 9},
            {"peak_mb": 1, "peak_share": 1},
            {"share": 1e308},
            {"macs": 1e16},
            {"activation_mb": 1e300},
            {"latency_ms": math.inf},
        ),
    ],
)
def test_budgets_that_make_no_sense(given: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        BudgetSettings(**given)


def test_budgets_that_cannot_be_met_name_both_figures(resnet50: SearchSpace) -> None:
    levels = CostLevels(resnet50)
    low, high = resnet50.smallest_macs, resnet50.largest_macs
    assert (low, high) == (levels.smallest, levels.largest)
    check_budgets([Budget("exact", low, low), Budget("all", high)], levels)
    for budget, message in (
        (Budget("tiny", low - 1), f"tiny: {low - 1:,} MACs is below the smallest.* {low:,} MACs"),
        (Budget("big", high + 9, high + 1), f"at least {high + 1:,} MACs .* {high:,} MACs"),
        (Budget("turned", low + 2, low + 5), f"{low + 5:,} is above its upper bound {low + 2:,}"),
        (Budget("gap", low + 2, low + 1), f"no architecture costs {low + 1:,} to {low + 2:,}"),
    ):
        with pytest.raises(BudgetError, match=message):
            check_budgets([budget], levels)


def test_the_uniform_baseline_is_the_network_of_the_budget(resnet50: SearchSpace) -> None:
    budget = BudgetSettings(uniform=0.25).resolve(resnet50)
    found = baseline(resnet50, UNIFORM, budget, 0)
    assert found.architecture == resnet50.uniform(0.25)
    assert found.cost.macs == budget.max_macs
    assert found.budget == budget.name


def test_a_uniform_baseline_of_any_budget_is_close_to_it(resnet50: SearchSpace) -> None:
    budget = BudgetSettings(share=0.7).resolve(resnet50)
    found = baseline(resnet50, UNIFORM, budget, 0)
    alphas = {found.architecture.alphas[site.name] for site in resnet50.searchable}
    # One α; it is quantized by whole channels, 1/64 apart at the narrowest site.
    assert max(alphas) - min(alphas) <= 1 / 64
    assert found.cost.macs == pytest.approx(budget.max_macs, rel=0.01)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_the_growing_baseline_grows_with_depth_at_the_same_macs(
    resnet50: SearchSpace, alpha: float
) -> None:
    budget = BudgetSettings(uniform=alpha).resolve(resnet50)
    found = baseline(resnet50, INCREASING, budget, budget.max_macs)
    by_depth = sorted(resnet50.searchable, key=lambda site: site.depth)
    alphas = [found.architecture.alphas[site.name] for site in by_depth]
    assert alphas == sorted(alphas)
    assert alphas[0] < alphas[-1]
    assert all(a in site.choices for a, site in zip(alphas, by_depth, strict=True))
    assert budget.max_macs <= found.cost.macs <= 1.02 * budget.max_macs


def test_baselines_cost_no_less_than_what_they_are_held_against(resnet50: SearchSpace) -> None:
    budget = BudgetSettings(share=0.7).resolve(resnet50)
    for role in (UNIFORM, INCREASING):
        for at_least in (budget.max_macs, round(0.99 * budget.max_macs)):
            assert baseline(resnet50, role, budget, at_least).cost.macs >= at_least


def test_vanilla_and_searched(resnet50: SearchSpace) -> None:
    budget = BudgetSettings(uniform=0.5).resolve(resnet50)
    vanilla = baseline(resnet50, VANILLA, budget, 0)
    assert vanilla.cost.macs == resnet50.vanilla_macs
    assert vanilla.budget == ""
    found = searched(resnet50, budget, resnet50.uniform(0.75))
    assert found.cost == resnet50.cost(resnet50.uniform(0.75))
    assert found.slug == "searched-uniform-0.5"


OTHERS = [
    {"activation_mb": 0.07},
    {"activation_share": 0.8, "min_share": 0.5},
    {"latency_ms": 4.5},
    {"latency_share": 0.9, "min_share": 0.6},
]


@pytest.mark.parametrize("given", OTHERS)
def test_budgets_on_other_costs_are_those_of_brute_force(given: dict[str, float]) -> None:
    space = small()
    costs = costs_of(space, table_of(space))
    settings = BudgetSettings(**given)
    budget = settings.resolve(space, costs)
    assert budget.bound is not None
    assert budget.bound.cost == settings.cost == next(iter(given)).partition("_")[0]
    cost = costs[settings.cost]
    inside = [a for a in all_architectures(space) if budget.bound.admits(cost.of(a))]
    assert 0 < len(inside) < space.size
    below = [a for a in all_architectures(space) if cost.of(a) <= budget.bound.upper]
    macs = [space.cost(alphas).macs for alphas in below]
    assert (budget.min_macs, budget.max_macs) == (min(macs), max(macs))
    if "min_share" in given:
        assert budget.bound.lower == round(given["min_share"] * cost.vanilla)


@pytest.mark.parametrize("given", [{"activation_mb": 1e9}, {"latency_ms": 1e9}])
def test_a_budget_far_above_everything_holds_everything(given: dict[str, float]) -> None:
    """And takes no more memory than one that does not."""
    space = small()
    budget = BudgetSettings(**given).resolve(space, costs_of(space, table_of(space)))
    assert (budget.min_macs, budget.max_macs) == (space.smallest_macs, space.largest_macs)


def test_names_of_budgets_on_other_costs() -> None:
    names = [BudgetSettings(**given).name for given in OTHERS]
    assert names == [
        "0.07 MB of activations",
        "0.8 of vanilla's activation, at least 0.5",
        "4.5 ms",
        "0.9 of vanilla's latency, at least 0.6",
    ]


@pytest.mark.parametrize("given", [{"latency_ms": 1e-3}, {"activation_mb": 1e-4}])
def test_budgets_on_other_costs_that_cannot_be_met(given: dict[str, float]) -> None:
    space = small()
    with pytest.raises(
        BudgetError, match=r"no architecture costs at most .*; those of the search space cost"
    ):
        BudgetSettings(**given).resolve(space, costs_of(space, table_of(space)))


SEVERAL = {"share": 0.7, "activation_share": 0.75, "peak_share": 0.8}


def test_several_bounds_hold_at_once() -> None:
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), fixed={})
    costs = costs_of(space)
    settings = BudgetSettings(**SEVERAL)
    assert settings.costs == ("macs", "activation", "peak")
    assert settings.name == (
        "0.7 of vanilla and 0.75 of vanilla's activation and 0.8 of vanilla's peak memory"
    )
    assert settings.alias == "macs-0-7x-activation-0-75x-peak-0-8x"
    budget = settings.resolve(space, costs)
    uppers = [
        int(share * costs[key.removesuffix("_share").replace("share", "macs")].vanilla)
        for key, share in SEVERAL.items()
    ]
    assert [bound.upper for bound in budget.bounds] == uppers
    found = region(space, budget, costs)
    inside = [
        alphas
        for alphas in all_architectures(space)
        if all(costs[bound.cost].of(alphas) <= bound.upper for bound in budget.bounds)
    ]
    assert found.size == len(inside) > 10
    for alphas in islice(all_architectures(space), 0, None, 7):
        assert (max(found.excess(alphas).values()) <= 0) == (alphas in inside)


@pytest.mark.parametrize("role", [UNIFORM, INCREASING])
@pytest.mark.parametrize("given", [SEVERAL, {"peak_share": 0.7}, {"peak_mb": 0.05, "share": 0.9}])
def test_baselines_are_within_further_bounds(role: str, given: dict[str, float]) -> None:
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.25, 0.5, 1), fixed={})
    costs = costs_of(space)
    budget = BudgetSettings(**given).resolve(space, costs)
    limits = [(costs[bound.cost], bound.upper) for bound in budget.further]
    cost = costs[budget.first.cost]
    found = baseline(space, role, budget, 0, cost, limits).architecture.alphas
    assert all(one.of(found) <= most for one, most in limits)
    # The budget is used: any less of α would break it, or it is the closest to it.
    nearest = [max(one.of(found) / most for one, most in [*limits, (cost, budget.first.upper)])]
    assert 0.8 < nearest[0] < 1.2


@pytest.mark.parametrize("given", [SEVERAL, {"activation_share": 0.7}])
def test_baselines_between_the_choices_use_up_their_budget(given: dict[str, float]) -> None:
    """Of one or several bounds, the tightest is met within a step of α."""
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.25, 0.5, 1), fixed={})
    budget, costs = BudgetSettings(**given).resolve(space), costs_of(space.refined(32))
    limits = [(costs[bound.cost], bound.upper) for bound in budget.further]
    found = baseline(space, UNIFORM, budget, 0, costs[budget.first.cost], limits).architecture
    used = [costs[bound.cost].of(found.alphas) / bound.upper for bound in budget.bounds]
    assert 0.94 < max(used) < 1.06
    assert found.id == space.architecture(found.alphas).id
    alphas = found.alphas.values()
    assert max(alphas) - min(alphas) <= 1 / 16  # the narrowest site has 16 channels


@pytest.mark.parametrize(
    "given", [{"peak_share": 0.01}, {"share": 0.9, "activation_share": 0.01}, {"peak_mb": 1e-6}]
)
def test_several_bounds_that_cannot_be_met_are_shown_with_those_of_the_space(
    given: dict[str, float],
) -> None:
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), fixed={})
    words = r"no architecture costs at most .* bytes.*; those of the search space cost .*\(median "
    with pytest.raises(BudgetError, match=words):
        BudgetSettings(**given).resolve(space)


def test_the_range_of_peaks_is_that_of_brute_force() -> None:
    space = search_space("thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), fixed={})
    peaks = sorted(costs_of(space)["peak"].of(alphas) for alphas in all_architectures(space))
    middle = peaks[(len(peaks) - 1) // 2]
    with pytest.raises(BudgetError) as caught:
        BudgetSettings(peak_mb=1e-6).resolve(space)
    assert f"cost {peaks[0]:,} to {peaks[-1]:,} bytes at the peak (median {middle:,})" in str(
        caught.value
    )


def test_settings_that_runs_were_made_without_are_in_no_fingerprint() -> None:
    config = load_config(EXPERIMENT)
    keys = {"uniform", "share", "macs", "flops", "min_share"}
    assert [set(entry) for entry in flatten(config.space, "space")["space.budgets"]] == [keys, keys]
    later = {"objective", "screening_fraction", "choose_by"}
    assert not {f"search.{key}" for key in later} & fingerprint(config, "search").keys()
    search = replace(config.search, screening_fraction=0.5)
    assert fingerprint(replace(config, search=search), "search")["search.screening_fraction"] == 0.5
    # MLflow's parameters have them all.
    assert flatten(config.search, "search")["search.screening_fraction"] == 1


@pytest.mark.parametrize("role", [UNIFORM, INCREASING])
def test_baselines_of_a_latency_budget_take_as_long(role: str) -> None:
    space = small(alphas=(0, 0.25, 0.5, 1))
    costs = costs_of(space, table_of(space))
    budget = BudgetSettings(latency_share=0.9).resolve(space, costs)
    assert budget.bound is not None
    cost = costs["latency"]
    at_least = round(0.7 * budget.bound.upper)
    found = baseline(space, role, budget, at_least, cost)
    assert cost.of(found.architecture.alphas) >= at_least


def test_small_amounts_are_not_cut_by_floating_point(resnet50: SearchSpace) -> None:
    """Some numbers of millionths come out of a product with a million one too small."""
    count = next(n for n in range(32_000_000, 33_000_000) if int(n / 1e6 * 1e6) == n - 1)
    found = BudgetSettings(activation_mb=count / 1e6).resolve(resnet50)
    assert found.bound is not None
    assert found.bound.upper == count


@pytest.mark.parametrize(
    ("bound", "alias"),
    [
        ({"share": 0.5}, "macs-0-5x"),
        ({"uniform": 0.75}, "uniform-0-75"),
        ({"macs": 1e6}, "macs-1000000"),
        ({"flops": 1e6}, "macs-1000000"),
        ({"activation_mb": 3.5}, "activation-3-5mb"),
        ({"activation_share": 0.6}, "activation-0-6x"),
        ({"latency_ms": 12}, "latency-12ms"),
        ({"latency_share": 0.7}, "latency-0-7x"),
        ({"share": 0.5, "min_share": 0.3}, "macs-0-5x-min-0-3"),
    ],
)
def test_aliases_are_what_a_model_registry_allows(bound: dict[str, float], alias: str) -> None:
    settings = BudgetSettings(**bound)
    assert settings.alias == alias
    # mlflow.utils.validation: letters, digits, "_" and "-", and neither "latest" nor a version.
    assert re.fullmatch(r"[\w-]+", settings.alias)
    assert not re.fullmatch(r"[vV]\d+|latest", settings.alias)
