"""Stage 7: the report of a run, finished or not, and the comparison of several runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from octnas.config import RunConfig
from octnas.data.image_list import read_summary
from octnas.data.images import preparation
from octnas.data.settings import ImagesSettings
from octnas.errors import RunDirectoryError
from octnas.io.files import read_json
from octnas.pipeline.network_latency import latencies
from octnas.pipeline.original import called
from octnas.pipeline.original import read_seconds as original_seconds
from octnas.pipeline.ranking import read_rankings
from octnas.pipeline.records import PARENT, begin_tracking, class_names
from octnas.pipeline.retrain import read_original
from octnas.pipeline.run import CONFIG_FILE, RUN_FILE, RUN_SCHEMA, Run, look_at_run
from octnas.pipeline.search import JOURNAL_FILE
from octnas.pipeline.search import read_seconds as search_seconds
from octnas.pipeline.so_far import candidates_so_far, chosen_so_far, results_so_far, stages_left
from octnas.pipeline.space import read_table
from octnas.pipeline.supernet import HISTORY_FILE, SCHEMA
from octnas.pipeline.supernet import read_seconds as supernet_seconds
from octnas.report.data import Effect, ReportData, StageTime
from octnas.report.page import write_page
from octnas.report.runs import ComparedRun, differing, flat, rank_rows, write_runs_page
from octnas.report.style import plural
from octnas.report.verdicts import savings
from octnas.report.write import FILES, PAGE_FILE, write_all
from octnas.results.front import Candidate, Front
from octnas.results.networks import Retrained
from octnas.results.validation_log import VALIDATION_LOG, count_validations
from octnas.results.verdict import Matrix
from octnas.runtime.directory import CONVERT, ORIGINAL, check_links, digest
from octnas.search.settings import MEASURED
from octnas.search.surrogate import Features, fit_candidates
from octnas.settings import flatten
from octnas.space.search_space import SearchSpace
from octnas.training.standalone import PREDICTIONS_FILE, training_folder

_HOUR = 3600.0
_DRAWS = 200  # of the surrogate model's weights
_FEWEST = 10  # candidates that a surrogate model needs
_MOST = 64  # candidates over which an effect is averaged


def report(run: Run, *, tables: Iterable[Path] = (), png: bool = False) -> None:
    """Write the page, the front, the table of retrained networks, and a summary in Markdown.

    Args:
        run: with a finished space stage.
        tables: latency tables of other devices.
        png: whether to draw the figures as PNG files, too.
    """
    data, folder = gather(run, tables), run.directory.stage("report")
    for line in write_all(data, folder, png=png):
        run.progress.say(f"report: {line}")
    begin_tracking(run)
    for name in FILES:
        if (folder / name).exists():
            run.tracker.artifact(PARENT, folder / name, "report")
    for sentence in savings(data):
        run.progress.say(f"report: {sentence}")
    run.progress.say(f"report: {folder / PAGE_FILE}")


def write_so_far(
    run: Run, tables: Iterable[Path] = (), seconds: int = 0
) -> tuple[ReportData, Path]:
    """Write only the page, of what there is; while unfinished it reloads itself every seconds."""
    data, page = gather(run, tables), run.directory.stage("report") / PAGE_FILE
    write_page(data, page, seconds if data.unfinished else 0)
    return data, page


def write_if_ready(
    path: Path, overrides: Sequence[str], tables: Sequence[Path], seconds: int
) -> tuple[str, bool]:
    """Write only the page, of a run that another process may be working on.

    Args:
        path: the run directory, which need not exist yet.
        overrides: see `look_at_run`.
        tables: latency tables of other devices.
        seconds: after which the page of an unfinished run reloads itself.

    Returns:
        A message, and whether the run is finished.

    Raises:
        RunDirectoryError: a link leads out of the run directory; or as `look_at_run`.
    """
    if not (path / CONFIG_FILE).exists():
        return f"{path}: waiting for the run to begin", False
    check_links(path)
    run = look_at_run(path, overrides)
    if run.directory.finished("space") is None:
        return f"{path}: waiting for its search space", False
    data, page = write_so_far(run, tables, seconds)
    if data.unfinished:
        return f"{page}: written every {seconds} s until the run is finished", False
    return f"{page}: the run is finished", True


def gather(run: Run, tables: Iterable[Path] = ()) -> ReportData:
    """Everything that the report shows, from the files of the run directory; see `report`.

    Raises:
        RunDirectoryError: a file with unexpected contents.
        LatencyError: a table that cannot be read, or of another network.
    """
    candidates = candidates_so_far(run)
    chosen, retrained = chosen_so_far(run, candidates), results_so_far(run)
    images, classes = read_summary(run.data.folder), class_names(run)
    answers = dict(_answers(run, retrained))
    return ReportData(
        name=run.config.name,
        space=run.space,
        budgets=run.budgets,
        candidates=candidates,
        front=Front.of(candidates),
        chosen=chosen,
        retrained=retrained,
        rankings=read_rankings(run) if run.directory.finished("rank") else {},
        supernet_history=_history(run),
        facts=facts(run),
        correct={name: correct for name, (correct, _) in answers.items()},
        validations=count_validations(run.directory.path / VALIDATION_LOG),
        baselines=run.config.retrain.baselines,
        latencies=latencies(
            run, (*candidates, *chosen.values()), retrained, [read_table(path) for path in tables]
        ),
        effects=effects_of_sites(run.space, candidates),
        by_class={
            name: _by_class(correct, targets, len(classes))
            for name, (correct, targets) in answers.items()
        },
        class_names=classes,
        digest=images.digest,
        skipped=len(images.problems),
        recipe=recipe_digest(run),
        times=_stage_times(run, retrained),
        unfinished=stages_left(run),
        measure=MEASURED[run.config.measure],
        converted=run.config.scores_converted,
        start=_start(run.config),
        original=read_original(run),
        reference=called(run.config),
        links=_links(run),
        run=quote(str(run.directory.path)),
    )


def _history(run: Run) -> tuple[dict[str, float], ...]:
    if run.directory.finished("supernet") is None:
        return ()
    path = run.directory.stage("supernet") / HISTORY_FILE
    return read_json(path, tuple[dict[str, float], ...], schema=SCHEMA, key="epochs")


def _answers(
    run: Run, retrained: Sequence[Retrained]
) -> Iterator[tuple[str, tuple[Matrix, Matrix]]]:
    """Architecture id, whether each val image was right, ``(seeds, images)``, and their classes.

    Of architectures whose predictions were kept by every training.
    """
    folder = run.directory.stage("retrain")
    for one in retrained:
        identity = one.network.architecture.id
        files = [
            training_folder(folder, identity, result.seed) / PREDICTIONS_FILE for result in one.runs
        ]
        if all(file.exists() for file in files):
            read = [_read_answers(file) for file in files]
            correct = np.array(
                [answers["predicted"] == answers["target"] for answers in read], float
            )
            yield identity, (correct, read[0]["target"])


def _read_answers(path: Path) -> dict[str, Matrix]:
    """The classes that a training predicted, and the correct ones."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{path}: cannot be read ({error}); redo its stage with --fresh"
        ) from None


def _by_class(correct: Matrix, targets: Matrix, classes: int) -> Matrix:
    """Accuracy by class, mean over seeds, shape ``(classes,)``."""
    counts = np.bincount(targets, minlength=classes)
    found: Matrix = np.bincount(targets, correct.mean(axis=0), classes) / np.maximum(counts, 1)
    return found


def effects_of_sites(space: SearchSpace, candidates: Sequence[Candidate]) -> dict[str, Effect]:
    """By searchable site, how the loss changes from its smallest α to its largest, in percent.

    According to the surrogate model: the mean over some candidates, whose other sites are kept.
    With fewer than ten candidates there are no effects.
    """
    usable = [one for one in candidates if np.isfinite(one.loss)]
    if len(usable) < _FEWEST:
        return {}
    features, sites = Features(space, pairs=True), space.searchable
    model = fit_candidates(features, usable)
    around = [dict(one.alphas) for one in usable[:: max(1, len(usable) // _MOST)]]

    def mean_features(site: str, alpha: float) -> Matrix:
        mean: Matrix = features([{**alphas, site: alpha} for alphas in around]).mean(axis=0)
        return mean

    rows = np.array(
        [
            mean_features(site.name, site.choices[-1]) - mean_features(site.name, site.choices[0])
            for site in sites
        ]
    )
    rng = np.random.default_rng(0)
    stds = np.array([rows @ model.draw(rng).weights for _ in range(_DRAWS)]).std(axis=0)
    return {
        # The model predicts logarithms.
        site.name: Effect(100 * float(np.expm1(mean)), 100 * float(np.exp(mean) * std))
        for site, mean, std in zip(sites, rows @ model.mean.weights, stds, strict=True)
    }


@dataclass(frozen=True)
class _Record:
    """What the report needs of a command's entry in ``run.json``."""

    time: str
    overrides: tuple[str, ...]
    versions: Mapping[str, str]
    python: str
    platform: str
    device: str = "cpu"


def _records(run: Run) -> tuple[_Record, ...]:
    """One for each command, in order; at least one."""
    path = run.directory.path / RUN_FILE
    return read_json(path, tuple[_Record, ...], schema=RUN_SCHEMA, key="runs")


def _device(records: Sequence[_Record]) -> str:
    """The run's device; light stages may have run where there is no GPU."""
    devices = [record.device for record in records]
    return next((one for one in reversed(devices) if one != "cpu"), "cpu")


def facts(run: Run) -> dict[str, str]:
    """Facts that the report shows unchanged: data, settings, versions."""
    runs = _records(run)
    first, last = runs[0], runs[-1]
    overrides = dict.fromkeys(override for record in runs for override in record.overrides)
    config, images = run.config, read_summary(run.data.folder)
    return {
        "Data": f"{config.data.source}, digest {images.digest}",
        "Images": ", ".join(f"{n:,} {part}" for part, n in images.counts.items() if n),
        "Skipped images and folders": str(len(images.problems)),
        "Seed of supernet and search": str(config.seed),
        "Seeds of retraining": ", ".join(map(str, config.retrain.seeds)),
        **_weights(config),
        "Search": f"{config.search.sampler}, {plural(config.search.trials, 'trial')}",
        "Retraining": f"{plural(config.retrain.recipe.epochs, 'epoch')} from {_start(config)}",
        "Device": _device(runs),
        "Started": first.time,
        "Overrides": ", ".join(overrides) or "none",
        "Versions": ", ".join(f"{name} {found}" for name, found in last.versions.items()),
        "Python": f"{last.python} on {last.platform}",
    }


def _start(config: RunConfig) -> str:
    """What retraining began with."""
    if config.retrain.weights == "supernet":
        return "the supernet"
    return "the original" if config.begins_with("retrain") else "scratch"


def _weights(config: RunConfig) -> dict[str, str]:
    """What candidates were scored with, and what the run began with."""
    epochs, sampling = config.supernet.recipe.epochs, config.supernet.sampling
    found = {"Supernet": f"{plural(epochs, 'epoch')}, {sampling}"}
    if config.scores_converted:
        found = {"Scores": f"of the original, channels sorted by {config.convert.criterion}"}
    if config.trains_original and config.original is not None:
        epochs = config.original.recipe.epochs
        return found | {"Original": f"trained by this run, {plural(epochs, 'epoch')}"}
    return found | ({"Original": config.space.weights} if config.has_original else {})


def recipe_digest(run: Run) -> str:
    """A digest of what accuracy depends on besides architecture, images and seeds.

    Runs with equal digests on equal images can be ranked: recipe and augmentation of retraining,
    and size and preparation of the images are the same.
    """
    data, retrain = run.config.data, run.config.retrain
    settings = flatten(retrain.recipe, "recipe")
    augment = retrain.augment or getattr(data, "augment", None)
    settings |= flatten(augment, "augment") if augment is not None else {}
    if run.config.begins_with("retrain"):
        made = run.directory.marker(CONVERT)  # the file itself may be gone
        # By its contents, or by what the run has trained it with.
        found = made.fingerprint if made else {}
        settings["original"] = found.get("space.weights") or found.get(f"input.{ORIGINAL}")
        settings["distillation"] = retrain.distillation and asdict(retrain.distillation)
    if retrain.weights == "supernet":
        marker = run.directory.marker("supernet")
        settings["supernet"] = marker and digest(marker.fingerprint)
    settings["preparation"] = preparation(data)
    settings["padding"] = getattr(data, "padding", None)
    settings["input_size"] = list(run.space.input_size)
    settings["ranks"] = retrain.processes  # each process has its own batch-norm statistics
    if isinstance(data, ImagesSettings):
        # Training crops are taken from what is cached.
        settings["cache"] = data.cache.resolution if data.cache.enabled else None
    return digest(settings)


def _stage_times(run: Run, retrained: Sequence[Retrained]) -> dict[str, StageTime]:
    """Computing time by name of the stage, of those that have begun."""
    config, found, device = run.config, dict[str, StageTime](), _device(_records(run))

    def add(
        stage: str, settings: Any, workers: int, seconds: float | None, what: str = "{}"
    ) -> None:
        processes = f"{workers} process{'es' if workers > 1 else ''}"
        threads = f"{settings.threads or 'all'} CPU thread{'' if settings.threads == 1 else 's'}"
        where = f"{processes} of {threads}" if device == "cpu" else f"{processes} on {device}"
        hours = workers * seconds / _HOUR if seconds else None
        found[stage] = StageTime(hours, what.format(where))

    if run.directory.finished("data") is not None:
        found["data"] = StageTime(None, "1 process")
    if config.original is not None and run.directory.finished(ORIGINAL) is not None:
        add(ORIGINAL, config.original, config.original.processes, original_seconds(run))
    if run.directory.finished("supernet") is not None:
        add("supernet", config.supernet, config.supernet.processes, supernet_seconds(run))
    if run.directory.stage("search").exists():
        workers = config.search.workers if config.search.executor == "ray" else 1
        add("search", config.search, workers, search_seconds(run))
    if retrained:
        # A network with two roles was trained once.
        trainings = [
            result
            for runs in {one.network.architecture.id: one.runs for one in retrained}.values()
            for result in runs
        ]
        seconds = sum(result.metrics["seconds"] for result in trainings)
        what = f"{plural(len(trainings), 'training')}, {{}} each"
        add("retrain", config.retrain, config.retrain.processes, seconds, what)
    if run.directory.finished("rank") is not None:
        seconds = next(iter(read_rankings(run).values())).seconds["truth"]
        found["truth"] = StageTime(seconds / _HOUR, "ground truth of the ranking check")
    if run.directory.finished("export") is not None:
        found["export"] = StageTime(None, "1 process")
    return found


def _links(run: Run) -> dict[str, str]:
    """Commands or addresses that show more of the run, by name."""
    found = {}
    if command := run.tracker.view_command():
        found["MLflow"] = command
    journal = run.directory.stage("search") / JOURNAL_FILE
    if journal.exists():
        found["Optuna’s dashboard"] = f"optuna-dashboard {quote(str(journal.resolve()))}"
    return found


def compare_runs(
    paths: Sequence[Path], out: Path
) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """Write a page that compares runs; returns its first table's rows and differing settings.

    Raises:
        RunDirectoryError: fewer than two different run directories, or one without a search space;
            or the page would be inside one of them.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunDirectoryError("octnas compare: give two or more different run directories")
    if inside := [path for path in paths if out.resolve().is_relative_to(path.resolve())]:
        raise RunDirectoryError(
            f"{out}: is inside {inside[0]}, one of the runs to compare; give another --out"
        )
    names = [path.resolve().name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    runs = [_read(path, label) for path, label in zip(paths, labels, strict=True)]
    write_runs_page(runs, out)
    return rank_rows(runs), differing(runs)


def _read(path: Path, label: str) -> ComparedRun:
    run = look_at_run(path)
    if run.directory.finished("space") is None:
        raise RunDirectoryError(f"{path}: has no search space yet, so there is nothing to compare")
    # The file has no passwords.
    return ComparedRun(label, gather(run), flat(run.document.values))
