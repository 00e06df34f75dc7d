"""Whether the supernet ranks: its scores beside a ground truth of stand-alone trainings.

The ground truth of a ranking check: some architectures, trained from scratch with some seeds.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from octnas.data.image_list import read_summary
from octnas.device import cpu_threads
from octnas.errors import BudgetError, RunDirectoryError
from octnas.io.files import read_as, write_json
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.run import Run
from octnas.pipeline.supernet import read_seconds, scorer
from octnas.pipeline.trainings import finished, train_several
from octnas.report.page import write_ranking_page
from octnas.report.ranking import ranking_text, write_ranking_csv
from octnas.results.ranking import Ranked, Ranking, regrets, statistics
from octnas.runtime.directory import read_document, reading
from octnas.settings import flatten
from octnas.training.standalone import Training, training_folder

TRUTH_SCHEMA = 1
DESIGN_FILE = "design.json"
PART = "read"
_TRIES = 100  # draws in a row that find nothing new


@dataclass(frozen=True)
class Drawn:
    """An architecture of the ground truth.

    Attributes:
        alphas: α by site.
        narrow: whether it belongs to the slice of nearly equal MACs.
    """

    alphas: Mapping[str, float]
    narrow: bool


def truth(run: Run) -> None:
    """Draw the architectures, train each with every seed; what is on disk is not trained again."""
    settings, directory = run.config.ranking, run.directory_of("truth")
    path = directory.stage("truth") / DESIGN_FILE
    if not path.exists():
        design = [asdict(drawn) for drawn in draw(run)]
        directory.begin("truth", run.fingerprint("truth"))
        document = {"schema": TRUTH_SCHEMA, "images": _digest(run), "architectures": design}
        write_json(path, document)
    train_several(run, trainings(run), settings, "ranking", "ground truth")
    run.progress.say(
        f"truth: {len(read_design(run))} architectures × {len(settings.seeds)} seeds, "
        f"{settings.recipe.epochs} epochs each"
    )


def draw(run: Run) -> list[Drawn]:
    """Architectures spread over MACs, and some of nearly equal MACs; all of them different.

    Raises:
        BudgetError: the search space holds too few.
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
                    f"ranking: {count} architectures of {low:,} to {high:,} MACs are asked for, "
                    f"found {len(found) + count - target}; lower ranking.architectures or "
                    "ranking.narrow, or raise ranking.narrow_width"
                )

    add(settings.narrow, bottom, top, narrow=True)
    add(settings.architectures - settings.narrow, levels.smallest, levels.largest, narrow=False)
    return list(found.values())


def read_design(run: Run) -> list[Drawn]:
    """What was drawn.

    Raises:
        RunDirectoryError: also if it was drawn for other images than this run's.
    """
    path = run.directory_of("truth").stage("truth") / DESIGN_FILE
    with reading(path):
        document = read_document(path, TRUTH_SCHEMA, "architectures")
        design = read_as(list[Drawn], document["architectures"])
    if document.get("images", _digest(run)) != _digest(run):
        raise RunDirectoryError(
            f"{path}: this ground truth was trained on other images, of digest "
            f"{document['images']}; this run's is {_digest(run)}"
        )
    return design


def _digest(run: Run) -> str:
    return str(read_summary(run.data.folder)["digest"])


def trainings(run: Run) -> list[Training]:
    """The trainings of the ground truth, by architecture in the order of the design, then seed."""
    folder = run.directory_of("truth").stage("truth")
    found = []
    for drawn in read_design(run):
        architecture = run.space.architecture(drawn.alphas)
        for seed in run.config.ranking.seeds:
            place = training_folder(folder, architecture.id, seed)
            found.append(Training(architecture, seed, place, PART))
    return found


Score = Callable[[Mapping[str, float]], Mapping[str, float]]

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
    """What `rank` wrote, by source of the scores: ``supernet``."""
    path = run.directory.stage("rank") / RANKING_FILE
    with reading(path):
        sources = read_document(path, SCHEMA, "sources")["sources"]
        return {source: Ranking.from_dict(entry) for source, entry in sources.items()}


def table(run: Run) -> str:
    """The check in words and numbers, as `octnas rank` prints it."""
    return "\n".join(ranking_text(source, one) for source, one in read_rankings(run).items())


def _sources(run: Run) -> Iterator[tuple[str, Score, float]]:
    """Where scores come from: name, function, and the seconds that it took to have it."""
    supernet, seconds = scorer(run, "search_val")(), read_seconds(run)
    yield SUPERNET, supernet, seconds


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
