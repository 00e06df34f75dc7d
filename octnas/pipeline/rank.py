"""Whether the supernet ranks: its scores beside a ground truth of stand-alone trainings."""

import time
from collections.abc import Iterator

from octnas.device import cpu_threads
from octnas.files import write_json
from octnas.pipeline.opening import Run
from octnas.pipeline.proxies import Score, proxy_score, read_proxies
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.supernet import read_seconds, scorer
from octnas.pipeline.trainings import finished
from octnas.pipeline.truth import PART, read_design, trainings
from octnas.ranking import Ranked, Ranking, regrets, statistics
from octnas.report.page import write_ranking_page
from octnas.report.ranking import ranking_text, write_ranking_csv
from octnas.run_directory import read_document, reading
from octnas.settings import flatten

SCHEMA = 1
KEY = "rank"
RANKING_FILE = "ranking.json"
SUPERNET = "supernet"


def rank(run: Run) -> None:
    """Score the architectures of the ground truth with the supernet, and compare."""
    begin_tracking(run)
    params = flatten(run.config.ranking, "ranking") | flatten(run.config.supernet, "supernet")
    run.tracker.start(KEY, "ranking check", params=params, parent=PARENT, again=True)
    values: dict[str, float] = {}
    found: dict[str, Ranking] = {}
    for source, score, seconds in _sources(run):
        run.progress.say(f"rank: scores of {source}")
        found[source] = one = _ranking(run, score, seconds)
        known = {name: i.value for name, i in one.statistics.items() if i.value is not None}
        known |= {f"regret_points/{regret.budget}": regret.points for regret in one.regrets}
        values |= {f"{source}/{name}": value for name, value in known.items()}
    path = run.directory.stage("rank") / RANKING_FILE
    sources = {source: one.to_dict() for source, one in found.items()}
    write_json(path, {"schema": SCHEMA, "sources": sources})
    write_ranking_csv(found, path.with_suffix(".csv"))
    write_ranking_page(run.config.name, found, path.with_suffix(".html"))
    run.tracker.metrics(KEY, values, 0)
    for suffix in (".json", ".csv", ".html"):
        run.tracker.artifact(KEY, path.with_suffix(suffix))
    run.tracker.finish(KEY)
    run.progress.say(f"rank: {path.with_suffix('.html')}")
    if run.directory.finished("search") is not None:
        run.progress.say(f"rank: `octnas report {run.directory.path}` puts it into the report")


def read_rankings(run: Run) -> dict[str, Ranking]:
    """What `rank` wrote, by source of the scores: ``supernet``, ``proxies``, ``both``."""
    path = run.directory.stage("rank") / RANKING_FILE
    with reading(path):
        sources = read_document(path, SCHEMA, "sources")["sources"]
        return {source: Ranking.from_dict(entry) for source, entry in sources.items()}


def table(run: Run) -> str:
    """The check in words and numbers, as `octnas rank` prints it."""
    return "\n".join(ranking_text(source, one) for source, one in read_rankings(run).items())


def _sources(run: Run) -> Iterator[tuple[str, Score, float]]:
    """Where scores come from: name, function, and the seconds that it took to have it."""
    supernet, seconds = scorer(run, "rank")(), read_seconds(run)
    short = read_proxies(run).seconds
    yield SUPERNET, supernet, seconds
    yield "proxies", proxy_score(run), short
    yield "both", proxy_score(run, supernet), seconds + short


def _ranking(run: Run, score: Score, seconds: float) -> Ranking:
    settings, truth = run.config.ranking, _truth(run)
    begin, ranked = time.perf_counter(), []
    with cpu_threads(run.config.search.threads):
        for drawn in read_design(run):
            measured = score(drawn.alphas)
            identity = run.space.architecture(drawn.alphas).id
            ranked.append(
                Ranked(
                    identity,
                    drawn.alphas,
                    run.space.cost(drawn.alphas).macs,
                    drawn.narrow,
                    measured["loss"],
                    measured["top1"],
                    tuple(truth[identity]),
                )
            )
    scoring = time.perf_counter() - begin
    trained = sum(finished(training).metrics["seconds"] for training in trainings(run))
    return Ranking(
        tuple(ranked),
        statistics(ranked, resamples=settings.resamples, seed=settings.seed),
        regrets(ranked, run.budgets, resamples=settings.resamples, seed=settings.seed),
        {"score": seconds, "scoring": scoring, "truth": trained},
        settings.recipe.epochs,
    )


def _truth(run: Run) -> dict[str, list[float]]:
    """Accuracies by seed of every architecture."""
    found: dict[str, list[float]] = {}
    for training in trainings(run):
        metrics = finished(training).metrics
        found.setdefault(training.architecture.id, []).append(metrics[f"{PART}_top1"])
    return found
