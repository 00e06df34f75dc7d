from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from octnas.report.data import Latencies, ReportData, Timing
from octnas.report.verdicts import headline
from octnas.report.words import caveats, format_size, searched_what, story, validation_words
from octnas.report.write import markdown
from octnas.results.ranking import Interval, Ranking
from octnas.space.costs import Budget

Make = Callable[..., ReportData]

CASES = {
    "wins": ((0.80, 0.81, 0.82), "Better than uniform α (71.0 ± 1.0 %, 3 seeds, "),
    "loses": ((0.60, 0.61, 0.62), "Did not win: worse than uniform α (71.0 ± 1.0 %, 3 seeds, "),
    "ties, ahead": ((0.70, 0.71, 0.74), "Did not win: +0.67 points against uniform α "),
    "ties, behind": ((0.69, 0.70, 0.71), "Did not win: −1.00 points against uniform α "),
}


@pytest.mark.parametrize("case", CASES)
def test_says_whether_the_searched_network_won(make_data: Make, case: str) -> None:
    searched, said = CASES[case]
    data = make_data(searched=searched, uniform=(0.70, 0.71, 0.72))
    ((_, sentence),) = story(data, data.budgets[0]).verdicts
    assert sentence.startswith(said)
    assert "(interval " in sentence
    assert ", detectable " in sentence
    assert ("smaller than the noise" in sentence) == case.startswith("ties")


def test_one_seed_allows_no_statement(make_data: Make) -> None:
    data = make_data(searched=(0.9,), uniform=(0.70, 0.71, 0.72))
    ((_, sentence),) = story(data, data.budgets[0]).verdicts
    assert sentence.startswith("+19.00 points against uniform α")
    assert sentence.endswith("no verdict with a single seed.")
    assert headline(data)[1:] == (
        "Searched against uniform α: no verdict with a single seed at 1 of 1 budget.",
    )


def test_equal_seeds_allow_no_statement(make_data: Make) -> None:
    data = make_data(searched=(0.9, 0.9), uniform=(0.7, 0.7))
    ((_, sentence),) = story(data, data.budgets[0]).verdicts
    assert "no verdict" in sentence


def test_choosing_the_baseline_itself_is_said(make_data: Make) -> None:
    data = make_data(uniform=(0.70, 0.71), increasing=(0.6, 0.62))
    uniform = data.retrained[0]
    searched = replace(uniform, network=replace(uniform.network, role="searched"))
    data = replace(data, retrained=(searched, *data.retrained))
    sentences = [sentence for _, sentence in story(data, data.budgets[0]).verdicts]
    assert sentences[0] == "The search chose the network with uniform α itself: nothing to compare."


def test_headline_counts_over_budgets(make_data: Make) -> None:
    rounds = {
        "a": make_data(budget="a", searched=(0.80, 0.81), uniform=(0.60, 0.61)),
        "b": make_data(budget="b", searched=(0.60, 0.61), uniform=(0.60, 0.61)),
    }
    data = replace(
        rounds["a"],
        budgets=tuple(budget for one in rounds.values() for budget in one.budgets),
        retrained=tuple(retrained for one in rounds.values() for retrained in one.retrained),
    )
    assert headline(data)[1:] == (
        "Searched against uniform α: better at 1 of 2 budgets; "
        "no difference beyond the noise at 1 of 2 budgets.",
    )


def test_story_names_training_length_read_score_and_vanilla(full: ReportData) -> None:
    found = story(full, full.budgets[0])
    assert "0.500 on the images used for ranking, and 0.625 (75.0 % top-1) on" in found.found[0]
    assert found.found[1] == (
        "Trained on its own for 2 epochs, it reaches 82.0 ± 2.0 % top-1 over 3 seeds."
    )
    once = replace(
        full.retrained[0],
        runs=tuple(replace(run, history=run.history[:1]) for run in full.retrained[0].runs),
    )
    short = replace(full, retrained=(once, *full.retrained[1:]))
    assert story(short, full.budgets[0]).found[1].startswith("Trained on its own for 1 epoch, ")
    assert len(found.verdicts) == 2
    assert found.outlook[0].startswith("For scale, vanilla (α = 0 everywhere): 86.0 ± 1.0 %")


def test_story_says_what_is_missing(make_data: Make) -> None:
    nothing = make_data()
    assert story(nothing, nothing.budgets[0]).outlook == (
        "Not retrained yet: how well it does on its own is unknown.",
    )
    alone = make_data(searched=(0.8, 0.9))
    assert "No baseline with uniform α was retrained" in story(alone, alone.budgets[0]).outlook[0]
    other = story(alone, Budget("other", 10**6, min_macs=10**5))
    assert other.found == ("No architecture was chosen for this budget.",)
    assert other.bound.endswith("at least 100.0 k MACs")


def test_lead_counts_sites_architectures_and_candidates(full: ReportData) -> None:
    lead = searched_what(full)
    assert "at 2 sites (plus 1 fixed site) of by_hand for images of 3 × 8 × 8: 9 arch" in lead
    assert "4 architectures of these were scored in one supernet trained for 1 epoch;" in lead


def test_sizes_of_spaces() -> None:
    assert format_size(78_125) == "78,125"
    assert format_size(186 * 10**18) == "1.86 · 10²⁰"


def test_the_validation_log_is_summed_up_by_purpose(full: ReportData) -> None:
    words = validation_words(replace(full, validations={"retrain": 21, "export": 1}))
    assert "21 evaluations on the val images after training" in words
    assert "1 evaluation for exports" in words
    assert words in markdown(replace(full, validations={"retrain": 21, "export": 1}), ())


def said(data: ReportData) -> str:
    return "\n".join(caveats(data))


def check(ceiling: float | None, gain_low: float) -> Ranking:
    statistics = {
        "ceiling": Interval(ceiling, None, None),
        "gain": Interval(0.2, gain_low, 0.4),
    }
    return Ranking((), statistics, (), {}, 1)


def trusted(full: ReportData) -> ReportData:
    """Without caveats."""
    cost = full.retrained[0].network.cost
    fair = (replace(one, network=replace(one.network, cost=cost)) for one in full.retrained)
    ids = [one.network.architecture.id for one in full.retrained]
    clock = Latencies("phone", "eager", "float32", 1, 1, dict.fromkeys(ids, Timing(0.001)))
    return replace(
        full,
        retrained=tuple(fair),
        rankings={"supernet": check(0.8, 0.1)},
        latencies=(clock,),
        correct=dict.fromkeys(ids, np.ones((3, 5000))),
    )


def test_without_weaknesses_there_are_no_caveats(full: ReportData) -> None:
    assert caveats(trusted(full)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"skipped": 7}, "7 images and folders were skipped"),
        ({"latencies": ()}, "Latency was not measured, and MACs are not time"),
        ({"rankings": {}}, "Ranking was not checked"),
        ({"rankings": {"supernet": check(0.31, 0.1)}}, "Low noise ceiling (supernet)"),
        ({"rankings": {"supernet": check(None, 0.1)}}, "unknown with a single seed"),
        ({"rankings": {"both": check(0.8, -0.1)}}, "scores of both are not shown to rank better"),
        ({"correct": {}}, "intervals cover seeds only"),
        ({"correct": {"a": np.ones((2, 200))}}, "200 images: each is 0.50 points"),
        ({"unfinished": {"retrain": "has begun"}}, "The run is not finished (retrain)"),
        ({"retrained": ()}, "No network was retrained"),
    ],
)
def test_each_weakness_is_a_caveat(
    full: ReportData, change: dict[str, object], sentence: str
) -> None:
    assert sentence in said(replace(trusted(full), **change))


def test_few_seeds_and_missing_baselines(make_data: Make) -> None:
    data = make_data(searched=(0.8, 0.9))
    assert "1 of 1 network have fewer than 3" in said(data)
    assert "There is no baseline with uniform α" in said(data)


def test_latency_of_some_networks_only(full: ReportData) -> None:
    data = trusted(full)
    first = full.retrained[0].network.architecture.id
    clock = replace(data.latencies[0], measured={first: Timing(0.001)})
    assert "latency of 3 retrained networks was not measured" in said(
        replace(data, latencies=(clock,))
    )
    guess = replace(clock, measured={}, predicted={first: 0.001})
    assert "predicted from a table, not measured" in said(replace(data, latencies=(guess,)))


def test_a_missing_baseline_of_the_settings_is_a_caveat(full: ReportData) -> None:
    asked = replace(trusted(full), baselines=("uniform", "increasing", "shallower", "vanilla"))
    assert caveats(asked) == ["There is no baseline with a shallower plain network."]


def test_a_baseline_of_fewer_macs_is_a_caveat(full: ReportData) -> None:
    """As there may be under a budget on latency."""
    data = trusted(full)
    searched, uniform, *others = data.retrained
    cost = replace(uniform.network.cost, macs=round(0.8 * searched.network.cost.macs))
    cheaper = replace(uniform, network=replace(uniform.network, cost=cost))
    (sentence,) = caveats(replace(data, retrained=(searched, cheaper, *others)))
    assert sentence.startswith("uniform, half: 20.0 % fewer MACs than the searched network")


def test_the_original_is_told_from_its_fine_tuning(tuned: ReportData) -> None:
    found = story(tuned, tuned.budgets[0])
    assert found.found[1].startswith("Fine-tuned for 2 epochs, it reaches 82.0 ± 2.0 %")
    *_, original, vanilla = found.outlook
    assert original.startswith("Your network as it came: 83.0 %, 356.0 k MACs")
    assert vanilla.startswith("For scale, vanilla (the original fine-tuned as long, without octav")
    page = markdown(tuned, ())
    assert "| your network |" in page
    assert "| vanilla (the original fine-tuned) |" in page
