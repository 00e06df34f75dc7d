"""Stage 4: the search for the best candidate within each budget."""

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
from octnas.io.files import read_json, write_json
from octnas.pipeline.latency import latency_words, measure_chosen, with_costs
from octnas.pipeline.original import called
from octnas.pipeline.records import PARENT, begin_tracking, write_candidates, write_chosen
from octnas.pipeline.run import Run
from octnas.pipeline.space import check_measuring
from octnas.pipeline.supernet import learned_proposals, read_distributions, scorer
from octnas.report.style import NOT_COMPARED, format_percent, plural
from octnas.results.front import Candidate, Front, best_under, hypervolume_curve
from octnas.results.networks import VANILLA
from octnas.runtime.progress import Bar
from octnas.search.samplers import Propose, initial_design, proposals
from octnas.search.settings import MEASURED
from octnas.search.storage import opened, quiet
from octnas.search.study import Driver, run_local
from octnas.search.surrogate import EXPECTED, Features, with_expected_losses
from octnas.settings import flatten
from octnas.space.budgets import Region, region, regions

SCHEMA = 1
KEY = "search"
STUDY_FILE = "study.json"
JOURNAL_FILE = "study.journal"
TRIALS_FILE = "trials.json"
SECONDS_FILE = "seconds.json"


def search(run: Run) -> None:
    """Evaluate candidates, choose one for each budget, and evaluate these on other images."""
    settings, total = run.config.search, run.config.search.trials
    # Whether and where to measure may have changed since stage `space`.
    check_measuring(run, run.table)
    quiet()
    begin_tracking(run)
    folder = run.directory.stage("search")
    new = not (folder / STUDY_FILE).exists()
    run.tracker.start(KEY, "search", params=flatten(settings, KEY), parent=PARENT, again=new)
    with (
        opened(settings.storage, folder / JOURNAL_FILE) as storage,
        run.progress.bar("search", total) as bar,
        cpu_threads(settings.threads),
    ):
        front: list[Candidate] = []
        driver = _driver(run, storage, _reporter(run, bar, front))
        bar.advance(driver.reported)
        front += with_costs(run, driver.candidates())
        with _clock(run):
            _evaluate(run, driver)
        found = with_costs(run, driver.candidates())
        areas = hypervolume_curve(found, _reference(run), run.config.objective)
        rows = [(c.trial, _metrics_of(c, area)) for c, area in zip(found, areas, strict=True)]
        # A process may have been killed after it reported to the study and not yet to the tracker.
        run.tracker.batch(KEY, rows)
        candidates, weight = with_expected_losses(Features(run.space, pairs=True), found)
        chosen, failures = _choose(run, candidates), driver.failures()
    chosen = measure_chosen(run, chosen)
    write_candidates(run, candidates)
    write_chosen(run, chosen)
    _say(run, candidates, chosen, failures)
    if weight is not None:
        run.progress.say(f"  expected losses: shrinkage weight {weight:.2f}")
    write_trials(candidates, folder / TRIALS_FILE)
    for file in sorted(folder.glob("*.json*")):
        if file.name != TRIALS_FILE:
            run.tracker.artifact(KEY, file)
    run.tracker.table(KEY, folder / TRIALS_FILE)
    run.tracker.finish(KEY)


@contextmanager
def _clock(run: Run) -> Iterator[None]:
    """Add the seconds of the evaluations to those before the search was interrupted."""
    start, before = time.monotonic(), read_seconds(run)
    try:
        yield
    finally:
        seconds = before + time.monotonic() - start
        path = run.directory.stage("search") / SECONDS_FILE
        write_json(path, {"schema": SCHEMA, "seconds": seconds})


def read_seconds(run: Run) -> float:
    """Seconds that the evaluations took; 0 where that was not recorded."""
    path = run.directory.stage("search") / SECONDS_FILE
    return read_json(path, float, schema=SCHEMA, key="seconds") if path.exists() else 0.0


def read_study_name(run: Run) -> str:
    """The name of the search's Optuna study."""
    path = run.directory.stage("search") / STUDY_FILE
    return read_json(path, str, schema=SCHEMA, key="study_name")


def _driver(run: Run, storage: BaseStorage, on_reported: Callable[[Candidate], None]) -> Driver:
    settings, study = run.config.search, run.directory.stage("search") / STUDY_FILE
    if not study.exists():
        run.directory.begin("search", run.fingerprint("search"))
        # Unique, since many runs may share one database.
        name = f"{run.config.name}-{uuid.uuid4().hex[:12]}"
        write_json(study, {"schema": SCHEMA, "study_name": name})
    seed, admitted = run.config.seed, _regions(run)
    others = [one for one in run.budgets if not one.macs_alone]
    design = initial_design(
        run.space,
        run.levels,
        run.budgets,
        settings.spread,
        seed,
        learned=[distribution.alphas for distribution in read_distributions(run)],
        inside=[region(run.space, one, run.costs) for one in others],
    )
    return Driver(
        run.space,
        settings,
        storage=storage,
        study_name=read_study_name(run),
        regions=admitted,
        design=design,
        seed=seed,
        propose=_proposals(run, admitted),
        on_reported=on_reported,
    )


def _regions(run: Run) -> list[Region]:
    """What the budgets admit, by the objective beside the loss."""
    return regions(run.space, run.budgets, run.costs, run.config.objective)


def _proposals(run: Run, admitted: Sequence[Region]) -> Propose | None:
    """The proposals of the samplers that are not Optuna's."""
    if run.config.search.sampler == "learned":
        return learned_proposals(run)
    return proposals(run.config.search.sampler, admitted, run.config.seed)


def write_trials(candidates: Sequence[Candidate], path: Path) -> None:
    """Write the candidates as a table of one row each; the last columns are α by site.

    The format is that of ``mlflow.load_table``, which allows no other key, such as a schema
    version.
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
    """Reports each candidate to the bar and the tracker, and keeps the front up to it."""

    measured = MEASURED[run.config.measure]

    def on_reported(candidate: Candidate) -> None:
        bar.advance(note=f"{candidate.macs / 1e6:,.2f} M MACs, {measured} {candidate.loss:.3f}")
        (candidate,) = with_costs(run, [candidate])
        found = Front.of((*front, candidate), cost=run.config.objective)
        front[:], area = found.candidates, found.hypervolume(_reference(run))
        # Once: after a kill, the study may report its last batch again.
        run.tracker.metrics(KEY, _metrics_of(candidate, area), candidate.trial)

    return on_reported


def _reference(run: Run) -> tuple[float, float]:
    """Reference of hypervolumes: the largest budget, and the loss of a uniform guess.

    The divergence of a uniform guess from the original is at most as large.
    """
    bounds = [one for budget in run.budgets for one in budget.bounds]
    uppers = [one.upper for one in bounds if one.cost == run.config.objective]
    largest = max(uppers, default=run.space.largest_macs)
    return float(largest), log(float(run.space.backbone_args["num_classes"]))


def _metrics_of(candidate: Candidate, hypervolume: float) -> dict[str, float]:
    """Metrics of a trial; the hypervolume is that of all candidates up to it."""
    return {"macs": float(candidate.macs), "hypervolume": hypervolume, **candidate.metrics}


def _evaluate(run: Run, driver: Driver) -> None:
    """Evaluate the candidates of the driver, here or through Ray Tune."""
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
    """The best candidate on search_val for each budget, evaluated again on the read part."""
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
    """The metric that the best candidate has the lowest of; empty for the loss."""
    return EXPECTED if run.config.search.choose_by == "expected" else ""


def _say(
    run: Run, candidates: list[Candidate], chosen: dict[str, Candidate], failures: list[str]
) -> None:
    front = Front.of(candidates, cost=run.config.objective)
    run.progress.say(
        f"search: {len(candidates)} different candidates, {len(front.candidates)} on the front"
    )
    if failures:
        run.progress.say(f"  {plural(len(failures), 'trial')} failed; the first: {failures[0]}")
    for line in _table(run, candidates, chosen):
        run.progress.say(f"  {line}")
    for budget in run.budgets:
        if words := latency_words(chosen[budget.name], budget):
            run.progress.say(f"  {budget.name}: {words.removeprefix(', ')}")


def _table(
    run: Run, candidates: Sequence[Candidate], chosen: Mapping[str, Candidate]
) -> Iterator[str]:
    """The chosen candidates before any training of their own, beside uniform α and vanilla."""
    config, space = run.config, run.space
    by_id = {one.id: one for one in candidates}
    uniform = {space.uniform(alpha).id: f"uniform α {alpha:g}" for alpha in space.alphas}
    shown = {called(config) if config.has_original else VANILLA: by_id.get(space.vanilla.id)}
    for budget in run.budgets:
        shown[f"{budget.name}: {chosen[budget.name].id}"] = chosen[budget.name]
        inside = [one for key in uniform if (one := by_id.get(key)) and one.fits(budget)]
        if inside:
            largest = max(inside, key=lambda one: one.macs)
            shown[uniform[largest.id]] = largest
    names = {"macs": "MACs", "activation": "activations"}
    if any(bound.cost == "peak" for budget in run.budgets for bound in budget.bounds):
        names["peak"] = "peak memory"
    width = max(map(len, shown))
    when = "before fine-tuning" if config.begins_with("retrain") else "before training"
    heads = "".join(f"{head:>13}" for head in names.values())
    score = f"  {MEASURED[config.measure]}, search_val"
    yield f"{when + ':':<{width}}{heads}{score:>24}    read"
    for name, one in shown.items():
        if one is not None:
            shares = [one.cost(cost) / run.costs[cost].vanilla for cost in names]
            costs = "".join(f"{format_percent(share):>13}" for share in shares)
            read = one.metrics.get("read_loss")
            loss = f"{one.loss:.3f}".rjust(max(24, len(score)))
            yield f"{name:<{width}}{costs}{loss}{_or_none(read):>8}"


def _or_none(loss: float | None) -> str:
    return NOT_COMPARED if loss is None else f"{loss:.3f}"
