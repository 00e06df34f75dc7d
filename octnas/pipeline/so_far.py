"""What an unfinished run has found so far; reading it changes nothing."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from octnas.errors import SearchError
from octnas.pipeline.records import (
    JUDGED,
    read_candidates,
    read_chosen,
    read_results,
    require_metrics,
)
from octnas.pipeline.retrain import PLAN_FILE, read_plan
from octnas.pipeline.run import Run
from octnas.pipeline.search import (
    JOURNAL_FILE,
    OUTCOMES_FILE,
    STUDY_FILE,
    chosen_by,
    read_study_name,
)
from octnas.results.front import Candidate, best_under
from octnas.results.networks import Retrained
from octnas.runtime.directory import WHOLE_RUN, reading
from octnas.search.storage import Journal, quiet
from octnas.search.study import Driver
from octnas.training.standalone import Training, training_folder


def stages_left(run: Run) -> dict[str, str]:
    """The unfinished stages before the report, with their state."""
    return {
        stage: "has begun" if run.directory.stage(stage).exists() else "has not begun"
        for stage in WHOLE_RUN
        if stage != "report" and run.directory.finished(stage) is None
    }


def candidates_so_far(run: Run) -> tuple[Candidate, ...]:
    """Every candidate that the search has reported to its study.

    A study in a database is not read before the search is finished.
    """
    if run.directory.finished("search") is not None:
        return read_candidates(run)
    folder = run.directory.stage("search")
    begun = all((folder / name).exists() for name in (STUDY_FILE, JOURNAL_FILE))
    if run.config.search.storage or not begun:
        return ()
    quiet()
    with tempfile.TemporaryDirectory() as copies:
        # The search is writing to them, and opening them repairs what a killed process left behind.
        for name in (JOURNAL_FILE, OUTCOMES_FILE):
            if (folder / name).exists():
                shutil.copy(folder / name, copies)
        try:
            driver = Driver(
                run.space,
                run.config.search,
                storage=Journal(Path(copies) / JOURNAL_FILE),
                study_name=read_study_name(run),
                within=((0, run.space.largest_macs),),
                design=(),
                seed=run.config.seed,
                log=Path(copies) / OUTCOMES_FILE,
            )
        except (SearchError, json.JSONDecodeError):
            # Copied in the middle of a line; the next copy will be whole.
            return ()
        return tuple(driver.candidates())


def chosen_so_far(run: Run, candidates: tuple[Candidate, ...]) -> Mapping[str, Candidate]:
    """By budget name, the chosen candidate, or until then the best so far."""
    if run.directory.finished("search") is not None:
        return read_chosen(run)
    metric = chosen_by(run)
    known = metric if all(metric in one.metrics for one in candidates) else ""
    best = {budget.name: best_under(candidates, budget, known) for budget in run.budgets}
    return {name: one for name, one in best.items() if one is not None}


def results_so_far(run: Run) -> tuple[Retrained, ...]:
    """The planned networks that have finished trainings, with those."""
    if run.directory.finished("retrain") is not None:
        return read_results(run)
    folder = run.directory.stage("retrain")
    if not (folder / PLAN_FILE).exists():
        return ()
    found = []
    for network in read_plan(run):
        identity = network.architecture.id
        trainings = [
            Training(network.architecture, seed, training_folder(folder, identity, seed))
            for seed in run.config.retrain.seeds
        ]
        results = [one.result for one in trainings if one.result is not None]
        with reading(folder / identity):
            for result in results:
                require_metrics(result.metrics, *JUDGED)
        if results:
            found.append(Retrained(network, tuple(results)))
    return tuple(found)
