"""The results of an unfinished run so far; reading them changes nothing."""

from collections.abc import Mapping

from octnas.pipeline.fingerprints import whole_run
from octnas.pipeline.latency import with_costs
from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.retrain import PLAN_FILE, read_plan
from octnas.pipeline.run import Run
from octnas.pipeline.search import JOURNAL_FILE, STUDY_FILE, chosen_by, read_study_name
from octnas.results.front import Candidate, best_under
from octnas.results.networks import Retrained
from octnas.search.storage import Journal, open_study, quiet
from octnas.search.study import evaluated
from octnas.training.standalone import Training, training_folder


def stages_left(run: Run) -> dict[str, str]:
    """The stages of a whole run that are not finished, with how far they are; no report."""
    found = {}
    for stage in whole_run(run.config):
        if stage != "report" and run.directory.finished(stage) is None:
            begun = run.directory.stage(stage).exists()
            found[stage] = "has begun" if begun else "has not begun"
    return found


def candidates_so_far(run: Run) -> tuple[Candidate, ...]:
    """Every candidate that the search has reported to its study; none before it has begun.

    A study in a database is read when the search is finished.
    """
    if run.directory.finished("search") is not None:
        return read_candidates(run)
    folder = run.directory.stage("search")
    there = all((folder / name).exists() for name in (STUDY_FILE, JOURNAL_FILE))
    if run.config.search.storage or not there:
        return ()
    quiet()
    study = open_study(Journal(folder / JOURNAL_FILE), read_study_name(run))
    return tuple(with_costs(run, [*evaluated(study, run.space, run.config.search).values()]))


def chosen_so_far(run: Run, candidates: tuple[Candidate, ...]) -> Mapping[str, Candidate]:
    """The chosen candidates; before the end of the search, the best so far without read metrics."""
    if run.directory.finished("search") is not None:
        return read_chosen(run)
    metric = chosen_by(run)
    known = metric if all(metric in one.metrics for one in candidates) else ""
    best = {budget.name: best_under(candidates, budget, known) for budget in run.budgets}
    return {name: one for name, one in best.items() if one is not None}


def results_so_far(run: Run) -> tuple[Retrained, ...]:
    """The planned networks with the trainings that are finished, where there is one."""
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
        if results:
            found.append(Retrained(network, tuple(results)))
    return tuple(found)
