import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from octnas.errors import SearchError
from octnas.results.front import Front
from octnas.search.samplers import LEARNED, SPREAD, UNIFORM, bounds, initial_design
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.storage import open_storage, quiet
from octnas.search.study import Job, run_local
from octnas.space.budgets import Region, costs_of, regions
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from tests.search.conftest import Make, table
from tests.search.small import loss_of

quiet()


@pytest.mark.parametrize("sampler", ["surrogate", "nsga2", "tpe", "random"])
def test_a_search_evaluates_every_candidate_once(
    make_driver: Make, space: SearchSpace, sampler: Sampler
) -> None:
    asked: list[str] = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        asked.append(space.architecture(alphas).id)
        return loss_of(alphas)

    driver = make_driver(SearchSettings(trials=40, spread=6, population=8, sampler=sampler))
    run_local(driver, evaluate)
    candidates = driver.candidates()
    assert driver.done
    assert driver.reported == 40
    assert driver.failures() == []
    assert len(asked) == len(set(asked)) == len(candidates)
    for candidate in candidates:
        assert candidate.loss == loss_of(candidate.alphas)["loss"]
        assert candidate.macs == space.cost(candidate.alphas).macs
        assert candidate.metrics["rank_top1"] == 1 / candidate.loss


def test_the_first_candidates_are_the_design(make_driver: Make, space: SearchSpace) -> None:
    driver = make_driver()
    run_local(driver, loss_of)
    first = driver.candidates()[:9]
    assert [c.origin for c in first] == [UNIFORM] * 3 + [SPREAD] * 6
    assert [c.id for c in first[:3]] == [space.uniform(alpha).id for alpha in (0, 0.5, 1)]
    assert {c.origin for c in driver.candidates()[9:]} == {"nsga2"}


def test_the_sampler_goes_where_the_constraint_and_the_loss_lead(
    make_driver: Make, space: SearchSpace, budget: Budget
) -> None:
    settings = SearchSettings(sampler="nsga2", trials=160, batch_size=8, spread=6, population=16)
    driver, random = (
        make_driver(settings),
        make_driver(
            SearchSettings(trials=160, batch_size=8, spread=6, sampler="random"), folder="random"
        ),
    )
    run_local(driver, loss_of)
    run_local(random, loss_of)
    late = [candidate for candidate in driver.candidates() if candidate.trial >= 80]
    share = sum(budget.admits(candidate.macs) for candidate in late) / len(late)
    levels = CostLevels(space)
    assert share > 1.2 * levels.count(levels.smallest, budget.max_macs) / space.size
    volumes = []
    for found in (driver.candidates(), random.candidates()):
        inside = [candidate for candidate in found if budget.admits(candidate.macs)]
        volumes.append(Front.of(inside).hypervolume((budget.max_macs, 30.0)))
    assert volumes[0] > volumes[1] > 0


def test_the_seed_decides_the_candidates(make_driver: Make) -> None:
    found = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        driver = make_driver(folder=folder, seed=seed)
        run_local(driver, loss_of)
        found[folder] = table(driver.candidates())
    assert found["a"] == found["b"] != found["c"]


def test_the_order_of_answers_does_not_matter(make_driver: Make) -> None:
    """As with several workers: all of a batch is out at once and comes back in any order."""
    straight, shuffled = make_driver(folder="a"), make_driver(folder="b")
    run_local(straight, loss_of)
    while not shuffled.done:
        out: list[Job] = []
        while (job := shuffled.ask()) is not None:
            out.append(job)
        for job in reversed(out):
            shuffled.tell(job.number, loss_of(job.alphas))
    assert table(shuffled.candidates()) == table(straight.candidates())


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 13, 30])
def test_an_interrupted_search_resumes_to_the_same_end(make_driver: Make, stop: int) -> None:
    unbroken = make_driver(folder="unbroken")
    run_local(unbroken, loss_of)

    evaluated: list[int] = []

    class Killed(BaseException):
        pass

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        if len(evaluated) == stop:
            raise Killed
        evaluated.append(1)
        return loss_of(alphas)

    with pytest.raises(Killed):
        run_local(make_driver(folder="broken"), evaluate)
    again: list[int] = []

    def count(alphas: Mapping[str, float], _: float) -> dict[str, float]:
        again.append(1)
        return loss_of(alphas)

    resumed = make_driver(folder="broken")
    run_local(resumed, count)
    assert table(resumed.candidates()) == table(unbroken.candidates())
    # Nothing was evaluated twice.
    assert len(evaluated) + len(again) == len(unbroken.candidates())


def test_a_spoilt_line_of_the_journal_is_named(make_driver: Make, tmp_path: Path) -> None:
    run_local(make_driver(folder="spoilt"), loss_of)
    journal = tmp_path / "spoilt" / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], "nonsense\n", *lines[2:]]))
    with pytest.raises(SearchError, match="line 2 is not a line of a study"):
        make_driver(folder="spoilt")


def test_a_study_of_another_space_is_named(make_driver: Make, tmp_path: Path) -> None:
    run_local(make_driver(), loss_of)
    journal = tmp_path / "a" / "study.journal"
    journal.write_text(journal.read_text().replace('"layer1', '"layer9'))
    with pytest.raises(SearchError, match=r"study: its trials are of another search space.*layer1"):
        make_driver()


def test_a_study_without_metrics_has_the_losses(make_driver: Make, tmp_path: Path) -> None:
    """As earlier versions wrote it, with the metrics in another file."""
    run_local(make_driver(), loss_of)
    journal = tmp_path / "a" / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    before = make_driver().candidates()
    journal.write_text("".join(line for line in lines if '"metrics"' not in line))
    after = make_driver()
    assert after.done
    assert table(after.candidates()) == table(before)
    assert all(one.metrics == {"rank_loss": one.loss} for one in after.candidates())


def test_one_failing_candidate_does_not_end_the_search(make_driver: Make) -> None:
    calls: list[int] = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        if len(calls) == 5:
            return {"loss": math.nan, "top1": 0.0}
        return loss_of(alphas)

    driver = make_driver()
    run_local(driver, evaluate)
    assert driver.done
    assert sorted(driver.failures()) == ["RuntimeError: out of memory", "the loss is nan"]
    assert all(math.isfinite(candidate.loss) for candidate in driver.candidates())


@pytest.mark.parametrize(("retries", "failures"), [(0, 2), (1, 1), (2, 0)])
def test_candidates_are_tried_again(make_driver: Make, retries: int, failures: int) -> None:
    """One that fails once, and one that fails twice."""
    tried: dict[tuple[float, ...], int] = {}

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        key = tuple(alphas.values())
        tried[key] = tried.get(key, 0) + 1
        if tried[key] <= {2: 1, 4: 2}.get(list(tried).index(key), 0):
            raise RuntimeError("out of memory")
        return loss_of(alphas)

    driver = make_driver()
    run_local(driver, evaluate, retries=retries)
    assert driver.failures() == failures * ["RuntimeError: out of memory"]
    assert max(tried.values()) == retries + 1
    assert driver.reported == 40


def test_a_search_in_which_everything_fails_stops(make_driver: Make) -> None:
    def evaluate(_: Mapping[str, float], __: float) -> dict[str, float]:
        raise RuntimeError("no images")

    with pytest.raises(SearchError, match=r"each of the last 8 candidates failed.*no images"):
        run_local(make_driver(), evaluate)
    # Once that is mended, none is missing: all are the ones of a search that met no such fault.
    mended, whole = make_driver(), make_driver(folder="whole")
    run_local(mended, loss_of)
    run_local(whole, loss_of)
    assert mended.failures() == []
    assert mended.candidates() == whole.candidates()


def test_a_batch_that_is_small_may_fail_as_a_whole(make_driver: Make) -> None:
    """One after another; what ends a search is too many in a row, or all of it."""
    calls: list[int] = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        calls.append(1)
        if 3 <= len(calls) < 10:
            raise RuntimeError("out of memory")
        return loss_of(alphas)

    driver = make_driver(SearchSettings(trials=20, batch_size=1, spread=6, sampler="random"))
    run_local(driver, evaluate)
    assert driver.done
    assert len(driver.failures()) == 7
    few = make_driver(SearchSettings(trials=3, batch_size=2, sampler="random"), folder="few")
    calls[:] = [1] * 3
    with pytest.raises(SearchError, match="each of the last 3 candidates failed"):
        run_local(few, evaluate)


def test_no_trial_is_left_running(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver()
    assert driver.ask() is not None  # and the process dies
    run_local(make_driver(), loss_of)
    study = optuna.load_study(
        study_name="study", storage=open_storage("", tmp_path / "a" / "study.journal")
    )
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}
    assert all(trial.constraints.keys() == {"max_macs", "min_macs"} for trial in study.trials)


def test_a_database_url_is_used_and_its_password_kept_out_of_errors(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    assert storage.get_all_studies() == []
    for url in ("postgresql://me:hunter2@127.0.0.1:1/db", "nosuch://me:hunter2@host/db"):
        with pytest.raises(SearchError, match=r"search\.storage") as caught:
            open_storage(url, tmp_path / "unused")
        assert "hunter2" not in str(caught.value)


def test_a_lower_bound_is_a_constraint_too(space: SearchSpace) -> None:
    budgets = [Budget("a", 900, 100), Budget("b", 500, 200)]
    assert bounds(budgets) == (100, 900)
    assert joined(space, budgets) == [(100, 900)]
    ends = [(5, 9), (1, 3), (4, 4), (20, 30), (25, 40)]
    assert joined(space, [Budget("", high, low) for low, high in ends]) == [(1, 9), (20, 40)]


def joined(space: SearchSpace, budgets: list[Budget]) -> list[tuple[int, int]]:
    return [(one.low, one.high) for one in regions(space, budgets, costs_of(space))]


def test_what_lies_between_the_budgets_is_as_infeasible_as_it_is_far(
    space: SearchSpace, make_driver: Make
) -> None:
    vanilla = space.vanilla_macs
    within = [(0, round(0.4 * vanilla)), (round(0.9 * vanilla), vanilla)]
    driver = make_driver()
    driver._regions = [Region(CostLevels(space), *ends) for ends in within]
    run_local(driver, loss_of)
    for trial in driver._study.get_trials(states=(TrialState.COMPLETE,)):
        macs = int(trial.values[1])
        inside = any(low <= macs <= high for low, high in within)
        over, under = trial.constraints["max_macs"], trial.constraints["min_macs"]
        assert inside == (over <= 0 and under <= 0)
        if not inside:
            distance = min(max(low - macs, macs - high) for low, high in within)
            assert max(over, under) == pytest.approx(distance / vanilla)


def test_the_design_is_spread_over_the_affordable_range(space: SearchSpace, budget: Budget) -> None:
    levels = CostLevels(space)
    design = initial_design(space, levels, [budget], 8, seed=0)
    macs = [space.cost(alphas).macs for origin, alphas in design if origin == SPREAD]
    edges = [levels.smallest + (budget.max_macs - levels.smallest) * step / 8 for step in range(9)]
    for low, high in pairwise(edges):
        assert any(low <= found <= high for found in macs)
    assert len({space.architecture(alphas).id for _, alphas in design}) == len(design)


def test_what_was_learned_comes_first_whatever_it_is_like(
    space: SearchSpace, budget: Budget
) -> None:
    levels = CostLevels(space)
    learned = [space.uniform(0.5).alphas, {**space.uniform(0).alphas, "layer1": 1.0}]
    design = initial_design(space, levels, [budget], 4, 0, learned)
    assert design[:2] == [(LEARNED, learned[0]), (LEARNED, learned[1])]
    others = initial_design(space, levels, [budget], 4, 0)
    expected = [(origin, alphas) for origin, alphas in others if alphas not in learned]
    assert design[2:] == expected
