"""The ranking check: scores of the search against a ground truth.

The ground truth is the accuracy of some architectures, each trained with some seeds as retraining
would: from scratch, or fine-tuned from the network that the run begins with.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from octnas.data.image_list import read_summary
from octnas.device import cpu_threads
from octnas.errors import BudgetError, RunDirectoryError
from octnas.io.files import read_json, write_json
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.retrain import finished, original, train_several
from octnas.pipeline.run import Run
from octnas.pipeline.supernet import read_seconds, scorer
from octnas.report.page import write_ranking_page
from octnas.report.ranking import ranking_text, write_ranking_csv
from octnas.report.style import plural
from octnas.results.ranking import Ranked, Ranking, regrets, statistics
from octnas.search.settings import MEASURED
from octnas.settings import flatten
from octnas.training.scoring import Scorer
from octnas.training.settings import RetrainSettings
from octnas.training.standalone import Training, training_folder

SCHEMA = 1
KEY = "rank"
RANKING_FILE = "ranking.json"
# Sources of scores.
SUPERNET, CONVERTED = "supernet", "converted original"
TRUTH_SCHEMA = 1
DESIGN_FILE = "design.json"
PART = "read"
_TRUTH = ("top1", "loss")  # metrics of that part
_TRIES = 100  # draws in a row that find nothing new


@dataclass(frozen=True)
class Drawn:
    """An architecture of the ground truth; a narrow one is of the slice of nearly equal MACs."""

    alphas: Mapping[str, float]
    narrow: bool


@dataclass(frozen=True)
class Design:
    """The architectures of the ground truth, and the digest of the images they are trained on."""

    architectures: list[Drawn]
    images: str | None = None


def truth(run: Run) -> None:
    """Draw the architectures and train each with every seed, except for finished trainings."""
    settings, directory = run.config.ranking, run.directory_of("truth")
    path = directory.stage("truth") / DESIGN_FILE
    if not path.exists():
        design = [asdict(drawn) for drawn in draw(run)]
        directory.begin("truth", run.fingerprint("truth"))
        document = {"schema": TRUTH_SCHEMA, "images": _digest(run), "architectures": design}
        write_json(path, document)
    recipe = RetrainSettings(
        fit_images=run.config.retrain.fit_images,
        distillation=run.config.retrain.distillation,
        threads=settings.threads,
        workers=settings.workers,
        executor=settings.executor,
        recipe=settings.recipe,
    )
    train_several(run, trainings(run), recipe, section="ranking", title="ground truth")
    run.progress.say(
        f"truth: {plural(len(read_design(run)), 'architecture')} × "
        f"{plural(len(settings.seeds), 'seed')}, {plural(settings.recipe.epochs, 'epoch')} each"
    )


def draw(run: Run) -> list[Drawn]:
    """Architectures spread over MACs, and some of nearly equal MACs; all different.

    Raises:
        BudgetError: the search space has too few.
    """
    settings, levels = run.config.ranking, run.levels
    rng = np.random.default_rng(settings.seed)
    middle = sorted(budget.max_macs for budget in run.budgets)[len(run.budgets) // 2]
    top = min(middle, levels.largest)
    bottom = round(top * (1 - settings.narrow_width))
    found: dict[str, Drawn] = {}

    def add(count: int, low: int, high: int, narrow: bool) -> None:
        target, failed = len(found) + count, 0
        while len(found) < target:
            before = len(found)
            for alphas in levels.spread(rng, target - before, low, high):
                found.setdefault(run.space.architecture(alphas).id, Drawn(alphas, narrow))
            failed = failed + 1 if len(found) == before else 0
            if failed == _TRIES:
                raise BudgetError(
                    f"ranking: {count} architectures of {low:,} to {high:,} MACs are needed, "
                    f"found {len(found) + count - target}; lower ranking.architectures or "
                    "ranking.narrow, or raise ranking.narrow_width"
                )

    add(settings.narrow, bottom, top, narrow=True)
    add(settings.architectures - settings.narrow, levels.smallest, levels.largest, narrow=False)
    return list(found.values())


def read_design(run: Run) -> list[Drawn]:
    """Read the drawn architectures.

    Raises:
        RunDirectoryError: also if they were trained on other images than this run's.
    """
    path = run.directory_of("truth").stage("truth") / DESIGN_FILE
    design = read_json(path, Design, schema=TRUTH_SCHEMA)
    if design.images not in (None, own := _digest(run)):
        raise RunDirectoryError(
            f"{path}: this ground truth was trained on images of digest {design.images}, but this "
            f"run has images of digest {own}"
        )
    return design.architectures


def _digest(run: Run) -> str:
    return read_summary(run.data.folder).digest


def trainings(run: Run) -> list[Training]:
    """The trainings of the ground truth, by architecture, then by seed."""
    folder, found = run.directory_of("truth").stage("truth"), []
    begins_with = original(run) if run.config.begins_with("truth") else None
    for drawn in read_design(run):
        architecture = run.space.architecture(drawn.alphas)
        for seed in run.config.ranking.seeds:
            place = training_folder(folder, architecture.id, seed)
            found.append(Training(architecture, seed, place, PART, original=begins_with))
    return found


def rank(run: Run) -> None:
    """Score the architectures of the ground truth, and compare the rankings."""
    source = CONVERTED if run.config.scores_converted else SUPERNET
    if run.config.measure != "loss":
        source = f"{source}, {MEASURED[run.config.measure]}"
    begin_tracking(run)
    params = flatten(run.config.ranking, "ranking") | flatten(run.config.supernet, "supernet")
    run.tracker.start(KEY, "ranking check", params=params, parent=PARENT, again=True)
    run.progress.say(f"rank: scores of {source}")
    ranking = _ranking(run, scorer(run, "search_val")())
    known = {name: i.value for name, i in ranking.statistics.items() if i.value is not None}
    known |= {f"regret_points/{regret.budget}": regret.points for regret in ranking.regrets}
    path = run.directory.stage("rank") / RANKING_FILE
    write_json(path, {"schema": SCHEMA, "sources": {source: ranking.to_dict()}})
    write_ranking_csv({source: ranking}, path.with_suffix(".csv"))
    write_ranking_page(run.config.name, {source: ranking}, path.with_suffix(".html"))
    run.tracker.metrics(KEY, {f"{source}/{name}": value for name, value in known.items()}, 0)
    for suffix in (".json", ".csv", ".html"):
        run.tracker.artifact(KEY, path.with_suffix(suffix))
    run.tracker.finish(KEY)
    run.progress.say(f"rank: {path.with_suffix('.html')}")
    if run.directory.finished("search") is not None:
        run.progress.say(f"rank: `octnas report {run.directory.path}` adds it to the report")


def read_rankings(run: Run) -> dict[str, Ranking]:
    """Read what `rank` wrote, by source of the scores."""
    path = run.directory.stage("rank") / RANKING_FILE
    return read_json(path, dict[str, Ranking], schema=SCHEMA, key="sources")


def table(run: Run) -> str:
    """The check as text, as `octnas rank` prints it."""
    return "\n".join(ranking_text(source, one) for source, one in read_rankings(run).items())


def _ranking(run: Run, score: Scorer) -> Ranking:
    settings, done = run.config.ranking, _truth(run)
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
                    *(tuple(one[f"{PART}_{name}"] for one in done[identity]) for name in _TRUTH),
                )
            )
    scoring = time.perf_counter() - begin
    trained = sum(metrics["seconds"] for every in done.values() for metrics in every)
    learned = 0.0 if run.config.scores_converted else read_seconds(run)
    return Ranking(
        tuple(ranked),
        statistics(ranked, resamples=settings.resamples, seed=settings.seed),
        regrets(ranked, run.budgets, resamples=settings.resamples, seed=settings.seed),
        {"score": learned, "scoring": scoring, "truth": trained},
        settings.recipe.epochs,
        run.config.begins_with("truth"),
    )


def _truth(run: Run) -> dict[str, list[Mapping[str, float]]]:
    """Metrics by seed of every architecture."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for training in trainings(run):
        found.setdefault(training.architecture.id, []).append(finished(training).metrics)
    return found
