"""Stage 4: candidates, the front, and the best candidate for each budget."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log
from pathlib import Path

from optuna.storages import BaseStorage

from octnas.device import cpu_threads
from octnas.errors import SearchError
from octnas.io.files import read_as, write_json
from octnas.pipeline.latency import latency_words, measure_chosen, with_costs
from octnas.pipeline.records import PARENT, begin_tracking, write_candidates, write_chosen
from octnas.pipeline.run import Run
from octnas.pipeline.space import check_measuring
from octnas.pipeline.supernet import learned_proposals, read_distributions, scorer
from octnas.results.front import Candidate, Front, best_under, hypervolume_curve
from octnas.runtime.directory import read_document, reading
from octnas.runtime.progress import Bar
from octnas.search.design import initial_design, ranges
from octnas.search.samplers import Propose, Ranges, proposals
from octnas.search.storage import opened, quiet
from octnas.search.study import Driver, run_local
from octnas.search.surrogate import EXPECTED, Features, with_expected_losses
from octnas.settings import flatten
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Bound

SCHEMA = 1
KEY = "search"
STUDY_FILE = "study.json"
JOURNAL_FILE = "study.journal"
OUTCOMES_FILE = "outcomes.jsonl"
TRIALS_FILE = "trials.json"
SECONDS_FILE = "seconds.json"


def search(run: Run) -> None:
    """Evaluate candidates, choose one for each budget, and read the chosen ones on other images."""
    settings, total = run.config.search, run.config.search.trials
    # Whether to measure, and on which machine, may have changed since the space was made.
    check_measuring(run, run.table)
    quiet()
    begin_tracking(run)
    anew = not (run.directory.stage("search") / STUDY_FILE).exists()
    run.tracker.start(KEY, "search", params=flatten(settings, KEY), parent=PARENT, again=anew)
    journal = run.directory.stage("search") / JOURNAL_FILE
    with (
        opened(settings.storage, journal) as storage,
        run.progress.bar("search", total) as bar,
        cpu_threads(settings.threads),
    ):
        front: list[Candidate] = []
        driver = _driver(run, storage, _reporter(run, bar, front))
        bar.advance(driver.told)
        front += with_costs(run, driver.candidates())
        with _clock(run):
            _evaluate(run, driver)
        # A process may have been killed between the study and the record.
        found = with_costs(run, driver.candidates())
        run.tracker.batch(KEY, _metrics_by_trial(run, found), once=True)
        candidates, own = with_expected_losses(Features(run.space, pairs=True), found)
        chosen, failures = _choose(run, candidates), driver.failures()
    chosen = measure_chosen(run, chosen)
    write_candidates(run, candidates)
    write_chosen(run, chosen)
    _say(run, candidates, chosen, failures)
    if own is not None:
        run.progress.say(f"  of what tells a candidate from the model of all, {own:.0%} is its own")
    folder = run.directory.stage("search")
    write_trials(candidates, folder / TRIALS_FILE)
    for file in sorted(folder.glob("*.json*")):
        if file.name != TRIALS_FILE:
            run.tracker.artifact(KEY, file)
    run.tracker.table(KEY, folder / TRIALS_FILE)
    run.tracker.finish(KEY)


@contextmanager
def _clock(run: Run) -> Iterator[None]:
    """Add how long the evaluations take to what they took before the search was broken off."""
    begun, before = time.monotonic(), read_seconds(run)
    try:
        yield
    finally:
        seconds = before + time.monotonic() - begun
        path = run.directory.stage("search") / SECONDS_FILE
        write_json(path, {"schema": SCHEMA, "seconds": seconds})


def read_seconds(run: Run) -> float:
    """How long candidates were evaluated; 0 where that was not recorded."""
    path = run.directory.stage("search") / SECONDS_FILE
    if not path.exists():
        return 0.0
    with reading(path):
        return read_as(float, read_document(path, SCHEMA, "seconds")["seconds"])


def read_study_name(run: Run) -> str:
    """The name of the search's Optuna study."""
    path = run.directory.stage("search") / STUDY_FILE
    with reading(path):
        return read_as(str, read_document(path, SCHEMA, "study_name")["study_name"])


def _driver(run: Run, storage: BaseStorage, on_told: Callable[[Candidate], None]) -> Driver:
    settings, folder = run.config.search, run.directory.stage("search")
    study = folder / STUDY_FILE
    if not study.exists():
        run.directory.begin("search", run.fingerprint("search"))
        # Unique, since many runs may share one database.
        name = f"{run.config.name}-{uuid.uuid4().hex[:12]}"
        write_json(study, {"schema": SCHEMA, "study_name": name})
    name = read_study_name(run)
    learned = [distribution.alphas for distribution in read_distributions(run)]
    seed, levels, limits = run.config.seed, _levels(run), _limits(run)
    return Driver(
        run.space,
        settings,
        storage=storage,
        study_name=name,
        within=limits,
        design=initial_design(
            run.space,
            run.levels,
            run.budgets,
            settings.spread,
            seed,
            learned,
            [(levels[bound.cost], bound) for bound in _others(run)],
        ),
        seed=seed,
        cost=levels[run.config.objective].cost,
        propose=_proposals(run, levels[run.config.objective], limits),
        log=folder / OUTCOMES_FILE,
        on_told=on_told,
    )


def _others(run: Run) -> list[Bound]:
    """The bounds on other costs than MACs."""
    return [budget.bound for budget in run.budgets if budget.bound is not None]


def _levels(run: Run) -> dict[str, CostLevels]:
    """The architectures by MACs and by each other cost that is bounded."""
    names = {bound.cost for bound in _others(run)}
    return {"macs": run.levels} | {
        name: CostLevels(run.space, cost=run.costs[name]) for name in names
    }


def _limits(run: Run) -> Ranges:
    """The least and the most of what is made small beside the loss, in each budget."""
    if run.config.objective == "macs":
        return ranges((budget.min_macs, budget.max_macs) for budget in run.budgets)
    return ranges((one.lower, one.upper) for one in _others(run))


def _proposals(run: Run, levels: CostLevels, limits: Ranges) -> Propose | None:
    """What the samplers propose that are not Optuna's."""
    if run.config.search.sampler == "learned":
        return learned_proposals(run)
    settings = run.config.search
    return proposals(settings.sampler, levels, limits, run.config.seed)


def write_trials(candidates: Sequence[Candidate], path: Path) -> None:
    """Write the candidates as a table: a row each, α by site at last.

    The form is MLflow's, which shows it and reads it with ``mlflow.load_table``; it allows no
    other key, not even a schema version.
    """
    metrics = dict.fromkeys(name for one in candidates for name in one.metrics if name != "loss")
    sites = dict.fromkeys(name for one in candidates for name in one.alphas)
    rows = [
        [one.trial, one.id, one.origin, one.macs, one.loss]
        + [one.metrics.get(name) for name in metrics]
        + [one.alphas.get(name) for name in sites]
        for one in candidates
    ]
    columns = ["trial", "id", "origin", "macs", "loss", *metrics]
    columns += [f"alpha/{name}" for name in sites]
    write_json(path, {"columns": columns, "data": rows})


def _reporter(run: Run, bar: Bar, front: list[Candidate]) -> Callable[[Candidate], None]:
    """Tells the bar and MLflow of each candidate, and keeps the front, of all until then."""

    def on_told(candidate: Candidate) -> None:
        bar.advance(note=f"{candidate.macs / 1e6:,.2f} M MACs, loss {candidate.loss:.3f}")
        (told,) = with_costs(run, [candidate])
        found = Front.of((*front, told), cost=run.config.objective)
        front[:], area = found.candidates, found.hypervolume(_reference(run))
        # Once: the study is on disk behind its batch, of which all may be told again.
        run.tracker.metrics_once(KEY, _metrics_of(told, area), candidate.trial)

    return on_told


def _reference(run: Run) -> tuple[float, float]:
    """Of a hypervolume: the largest budget, and the loss of a guess among all classes."""
    return float(_limits(run)[-1][1]), log(float(run.space.backbone_args["num_classes"]))


def _metrics_of(candidate: Candidate, hypervolume: float) -> dict[str, float]:
    """Metrics of a trial; the hypervolume is that of all up to it."""
    return {"macs": float(candidate.macs), "hypervolume": hypervolume, **candidate.metrics}


def _metrics_by_trial(
    run: Run, candidates: Sequence[Candidate]
) -> list[tuple[int, dict[str, float]]]:
    areas = hypervolume_curve(candidates, _reference(run), run.config.objective)
    return [
        (one.trial, _metrics_of(one, area)) for one, area in zip(candidates, areas, strict=True)
    ]


def _evaluate(run: Run, driver: Driver) -> None:
    """Evaluate what the driver hands out, here or through Ray Tune."""
    settings = run.config.search
    if driver.done:
        return
    make = scorer(run, "search_val", settings.screening_fraction)
    if settings.executor == "local":
        run_local(driver, make(), retries=settings.retries)
        return
    from octnas.cluster.start import ray_cluster
    from octnas.cluster.tune import run_with_tune

    cpus = max(1, settings.threads)
    with ray_cluster(settings.workers * cpus, run.config.ray):
        run_with_tune(
            driver,
            make,
            workers=settings.workers,
            cpus=cpus,
            retries=settings.retries,
            gpus=run.config.ray.gpus,
            directory=(run.directory.stage("search") / "ray").resolve(),
        )


def _choose(run: Run, candidates: list[Candidate]) -> dict[str, Candidate]:
    """The best candidate on search_val for each budget, read again on the read part."""
    read: Callable[[Mapping[str, float]], Mapping[str, float]] = scorer(run, "read")()
    chosen: dict[str, Candidate] = {}
    for budget in run.budgets:
        best = best_under(candidates, budget, chosen_by(run))
        if best is None:
            raise SearchError(
                f"no candidate fits budget {budget.name}; raise search.trials or search.spread"
            )
        again = {f"read_{name}": value for name, value in read(best.alphas).items()}
        chosen[budget.name] = replace(best, metrics={**best.metrics, **again})
    return chosen


def chosen_by(run: Run) -> str:
    """The metric of candidates that is lowest of the best one; empty for their loss."""
    return EXPECTED if run.config.search.choose_by == "expected" else ""


def _say(
    run: Run, candidates: list[Candidate], chosen: dict[str, Candidate], failures: list[str]
) -> None:
    front = Front.of(candidates, cost=run.config.objective)
    run.progress.say(
        f"search: {len(candidates)} different candidates, {len(front.candidates)} on the front"
    )
    if failures:
        run.progress.say(f"  {len(failures)} trials failed; the first: {failures[0]}")
    for budget in run.budgets:
        best = chosen[budget.name]
        run.progress.say(
            f"  {budget.name}: {best.id}, {best.macs / 1e6:,.3f} M MACs, loss {best.loss:.3f} on "
            f"search_val, {best.metrics['read_loss']:.3f} on read{latency_words(best, budget)}"
        )
