"""Short stand-alone trainings as a second source of scores, and a model that spreads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from octnas.errors import require
from octnas.io.files import read_as, write_json
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.run import Run
from octnas.pipeline.supernet import trained_supernet
from octnas.pipeline.trainings import train_several
from octnas.results.front import Candidate
from octnas.runtime.directory import read_document, reading
from octnas.search.design import proxy_design
from octnas.search.surrogate import Features, Scores, Surrogate, fit
from octnas.settings import flatten
from octnas.training.standalone import Training

SCHEMA = 1
KEY = "proxies"
ORIGIN = "proxy"
PROXIES_FILE = "proxies.json"
PART = "rank"


@dataclass(frozen=True)
class Proxies:
    """What short trainings have measured.

    Attributes:
        candidates: with their loss on the rank part.
        seconds: of all trainings.
    """

    candidates: tuple[Candidate, ...]
    seconds: float


def proxies(run: Run) -> None:
    """Train a design of architectures for a few epochs each; what is on disk stays."""
    settings, directory = run.config.proxies, run.directory_of("proxies")
    folder = directory.stage("proxies")
    design = proxy_design(run.levels, settings.architectures, settings.seed)
    with run.settings_of(KEY):
        allowed = "two or more, of a search space that holds as many"
        require(len(design) > 1, "architectures", len(design), allowed)
    directory.begin("proxies", run.fingerprint("proxies"))
    begin_tracking(run)
    run.tracker.start(KEY, "proxies", params=flatten(settings, KEY), parent=PARENT)
    begin = trained_supernet(run) if settings.weights == "supernet" else None
    trainings = []
    for alphas in design:
        architecture = run.space.architecture(alphas)
        place = folder / architecture.id
        trainings.append(Training(architecture, settings.seed, place, PART, begin))
    train_several(run, trainings, settings, "proxies", "proxies")
    candidates, seconds = [], 0.0
    for alphas, training in zip(design, trainings, strict=True):
        result = training.result
        assert result is not None
        candidates.append(_candidate(run, training, alphas, result.metrics))
        seconds += result.metrics["seconds"]
    path = folder / PROXIES_FILE
    document = [candidate.to_dict() for candidate in candidates]
    write_json(path, {"schema": SCHEMA, "seconds": seconds, "candidates": document})
    run.tracker.metrics_once(KEY, {"seconds": seconds}, 0)
    run.tracker.artifact(KEY, path)
    run.tracker.finish(KEY)
    run.progress.say(
        f"proxies: {len(candidates)} architectures, {settings.recipe.epochs} epochs each, "
        f"{seconds:,.0f} s of training"
    )


def read_proxies(run: Run) -> Proxies:
    """Read what `proxies` wrote."""
    path = run.directory_of("proxies").stage("proxies") / PROXIES_FILE
    with reading(path):
        document = read_document(path, SCHEMA, "seconds", "candidates")
        found = tuple(Candidate.from_dict(entry) for entry in document["candidates"])
        return Proxies(found, read_as(float, document["seconds"]))


Score = Callable[[Mapping[str, float]], Mapping[str, float]]


def proxy_score(run: Run, supernet: Score | None = None) -> Score:
    """A function that predicts ``loss`` and ``top1`` of α by site from the short trainings.

    Args:
        run: whose proxies are finished.
        supernet: scores of the supernet, to be a feature of the model beside α and MACs.
    """
    known = read_proxies(run).candidates
    models: dict[str, Surrogate] = {}
    features = Features(run.space)
    second = [supernet(candidate.alphas) for candidate in known] if supernet else []
    for name in ("loss", "top1"):
        models[name] = fit(
            features,
            Scores(
                [candidate.alphas for candidate in known],
                [candidate.metrics[f"{PART}_{name}"] for candidate in known],
            ),
            [scores[name] for scores in second],
        )

    def score(alphas: Mapping[str, float]) -> dict[str, float]:
        own = supernet(alphas) if supernet else None
        return {
            name: float(np.squeeze(model.predict([alphas], [own[name]] if own else ())))
            for name, model in models.items()
        }

    return score


def _candidate(
    run: Run, training: Training, alphas: Mapping[str, float], metrics: Mapping[str, float]
) -> Candidate:
    architecture = training.architecture
    return Candidate(
        architecture.id,
        architecture.alphas,
        run.space.cost(alphas).macs,
        metrics[f"{PART}_loss"],
        {**metrics, "epochs": run.config.proxies.recipe.epochs},
        ORIGIN,
    )
