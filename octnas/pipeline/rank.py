"""Whether the supernet ranks: its scores beside a ground truth of stand-alone trainings."""

import time

from octnas.device import cpu_threads
from octnas.pipeline.opening import Run
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.supernet import read_seconds, scorer
from octnas.pipeline.truth import PART, read_design, trainings
from octnas.ranking import Ranked, Ranking, regrets, statistics
from octnas.report.ranking import ranking_text
from octnas.run_directory import read_document, reading, write_json
from octnas.settings import flatten

SCHEMA = 1
KEY = "rank"
RANKING_FILE = "ranking.json"


def rank(run: Run) -> None:
    """Score the architectures of the ground truth with the supernet, and compare."""
    begin_tracking(run)
    params = flatten(run.config.ranking, "ranking") | flatten(run.config.supernet, "supernet")
    run.tracker.start(KEY, "ranking check", params=params, parent=PARENT, again=True)
    found = _ranking(run)
    path = run.directory.stage("rank") / RANKING_FILE
    write_json(path, found.to_dict())
    values = {name: one.value for name, one in found.statistics.items() if one.value is not None}
    values |= {f"regret_points/{one.budget}": one.points for one in found.regrets}
    run.tracker.metrics(KEY, values, 0)
    run.tracker.artifact(KEY, path)
    run.tracker.finish(KEY)


def read_ranking(run: Run) -> Ranking:
    """Read what `rank` wrote."""
    path = run.directory.stage("rank") / RANKING_FILE
    with reading(path):
        return Ranking.from_dict(read_document(path, SCHEMA, "architectures", "statistics"))


def table(run: Run) -> str:
    """The check in words and numbers, as `octnas rank` prints it."""
    return ranking_text(read_ranking(run))


def _ranking(run: Run) -> Ranking:
    settings, results = run.config.ranking, trainings(run)
    truth: dict[str, list[float]] = {}
    seconds = {"supernet": read_seconds(run), "scoring": 0.0, "truth": 0.0}
    for training in results:
        result = training.result
        assert result is not None
        truth.setdefault(training.architecture.id, []).append(result.metrics[f"{PART}_top1"])
        seconds["truth"] += result.metrics["seconds"]
    begin, ranked = time.perf_counter(), []
    design = read_design(run)
    with (
        cpu_threads(run.config.search.threads),
        run.progress.bar("scoring", len(design)) as bar,
    ):
        score = scorer(run, "rank")()
        for drawn in design:
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
            bar.advance()
    seconds["scoring"] = time.perf_counter() - begin
    return Ranking(
        tuple(ranked),
        statistics(ranked, resamples=settings.resamples, seed=settings.seed),
        regrets(ranked, run.budgets),
        seconds,
        settings.recipe.epochs,
    )
