"""Stage 7: the report, from whatever the stages before have written.

What a report says of a run besides its results: data, settings, versions, hours, links.

How much each site decides, as the search's model of all scores sees it.

The report of a run that another process goes on with.

Several finished runs, or what there is of them, beside each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from octnas.data.image_list import read_summary
from octnas.data.images import preparation
from octnas.data.settings import ImagesSettings
from octnas.errors import RunDirectoryError
from octnas.io.files import read_as
from octnas.pipeline.network_latency import latencies
from octnas.pipeline.ranking import read_rankings
from octnas.pipeline.records import PARENT, begin_tracking, class_names
from octnas.pipeline.run import CONFIG_FILE, RUN_FILE, RUN_SCHEMA, Run, check_name, look_at_run
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
from octnas.report.write import FRONT_CSV, FRONT_JSON, MARKDOWN, PAGE_FILE, TABLE_FILE, write_all
from octnas.results.front import Candidate, Front
from octnas.results.networks import Retrained, check_history
from octnas.results.validation_log import LOOKS_FILE, count_validations
from octnas.results.verdict import Matrix
from octnas.runtime.directory import check_links, digest, read_document, reading
from octnas.search.surrogate import Features, fit, log_scores
from octnas.settings import flatten
from octnas.space.search_space import SearchSpace
from octnas.training.standalone import JUDGED_FILE, training_folder

_DRAWS = 200
_FEWEST = 10  # candidates of which a model says something
_MOST = 64  # candidates over which an effect is averaged


def effects_of_sites(space: SearchSpace, candidates: Sequence[Candidate]) -> dict[str, Effect]:
    """By searchable site, what going from its smallest α to its largest does to the loss.

    In each of some candidates the site is put to one end and to the other, the rest left as it
    is; the mean of what the model of all scores says of that, in percent of the loss.

    Args:
        space: that was searched.
        candidates: that were evaluated; of fewer than ten nothing is told.
    """
    usable = [one for one in candidates if np.isfinite(one.loss)]
    if len(usable) < _FEWEST:
        return {}
    features = Features(space, pairs=True)
    model = fit(features, log_scores([one.alphas for one in usable], [one.loss for one in usable]))
    step = max(1, len(usable) // _MOST)
    around = [dict(one.alphas) for one in usable[::step]]
    rows = np.array(
        [_difference(features, around, site.name, site.choices) for site in space.searchable]
    )
    rng = np.random.default_rng(0)
    drawn = np.array([rows @ model.draw(rng).weights for _ in range(_DRAWS)])
    means, stds = rows @ model.mean.weights, drawn.std(axis=0)
    return {
        # The model is of logarithms.
        site.name: Effect(100 * float(np.expm1(mean)), 100 * float(np.exp(mean) * std))
        for site, mean, std in zip(space.searchable, means, stds, strict=True)
    }


def _difference(
    features: Features,
    around: Sequence[Mapping[str, float]],
    site: str,
    choices: tuple[float, ...],
) -> np.ndarray:
    """The mean difference of the features between the two ends of a site, shape ``(columns,)``."""
    low = features([{**alphas, site: choices[0]} for alphas in around])
    high = features([{**alphas, site: choices[-1]} for alphas in around])
    mean: np.ndarray = (high - low).mean(axis=0)
    return mean


_HOUR = 3600.0


@dataclass(frozen=True)
class _Record:
    """What the report says of what `octnas.pipeline.run` notes of a command."""

    time: str
    overrides: tuple[str, ...]
    versions: Mapping[str, str]
    python: str
    platform: str
    device: str = "cpu"


def _records(run: Run) -> tuple[_Record, ...]:
    """Of all commands, the first one first; there is one at least."""
    path = run.directory.path / RUN_FILE
    with reading(path):
        documents = read_document(path, RUN_SCHEMA, "runs")["runs"]
        names = [entry.name for entry in fields(_Record)]
        found = [
            read_as(_Record, {name: one[name] for name in names if name in one})
            for one in documents
        ]
        return (found[0], *found[1:])


def _device(records: Sequence[_Record]) -> str:
    """What the run computed on; stages that compute little may run where there is no GPU."""
    devices = [record.device for record in records]
    return next((one for one in reversed(devices) if one != "cpu"), "cpu")


def facts(run: Run) -> dict[str, str]:
    """What the report shows as it is: data, settings, versions."""
    runs = _records(run)
    first, last = runs[0], runs[-1]
    overrides = dict.fromkeys(override for record in runs for override in record.overrides)
    config, images = run.config, read_summary(run.data.folder)
    return {
        "Data": f"{config.data.source}, digest {images['digest']}",
        "Images": ", ".join(f"{n:,} {part}" for part, n in images["counts"].items() if n),
        "Skipped images and folders": str(len(images["problems"])),
        "Seed of supernet and search": str(config.seed),
        "Seeds of retraining": ", ".join(map(str, config.retrain.seeds)),
        "Supernet": f"{config.supernet.recipe.epochs} epochs, {config.supernet.sampling}",
        "Search": f"{config.search.sampler}, {config.search.trials} trials",
        "Retraining": f"{config.retrain.recipe.epochs} epochs from scratch",
        "Device": _device(runs),
        "Begun": first.time,
        "Overrides": ", ".join(overrides) or "none",
        "Versions": ", ".join(f"{name} {found}" for name, found in last.versions.items()),
        "Python": f"{last.python} on {last.platform}",
    }


def recipe_digest(run: Run) -> str:
    """A digest of what decides accuracy besides architecture, images and seeds.

    Two runs of the same one, on the same images, may be ranked: recipe and augmentation of
    retraining, and size and preparation of the images.
    """
    settings = flatten(run.config.retrain.recipe, "recipe")
    augment = run.config.retrain.augment or getattr(run.config.data, "augment", None)
    settings |= flatten(augment, "augment") if augment is not None else {}
    data = run.config.data
    settings["preparation"] = preparation(data)
    settings["padding"] = getattr(data, "padding", None)
    settings["input_size"] = list(run.space.input_size)
    # Each process has batch-norm statistics of its own.
    settings["ranks"] = run.config.retrain.processes
    if isinstance(data, ImagesSettings):
        # What training crops are cut from.
        settings["cache"] = data.cache.resolution if data.cache.enabled else None
    return digest(settings)


def stage_times(run: Run, retrained: Sequence[Retrained]) -> dict[str, StageTime]:
    """What the stages took, by name; None where a stage has begun and nothing is recorded."""
    config, found = run.config, dict[str, StageTime]()
    device = _device(_records(run))
    if run.directory.finished("data") is not None:
        found["data"] = StageTime(None, "1 process")
    if run.directory.finished("supernet") is not None:
        processes = config.supernet.processes
        hours = processes * supernet_seconds(run) / _HOUR
        found["supernet"] = StageTime(hours, _processes(processes, config.supernet.threads, device))
    if run.directory.stage("search").exists():
        workers = config.search.workers if config.search.executor == "ray" else 1
        seconds = workers * search_seconds(run)
        what = _processes(workers, config.search.threads, device)
        found["search"] = StageTime(seconds / _HOUR if seconds else None, what)
    if retrained:
        # A network in two roles was trained once.
        runs = {one.network.architecture.id: one.runs for one in retrained}
        seconds = sum(result.metrics["seconds"] for several in runs.values() for result in several)
        trainings = sum(map(len, runs.values()))
        processes = config.retrain.processes
        each = _processes(processes, config.retrain.threads, device)
        what = f"{plural(trainings, 'training')}, {each} each"
        found["retrain"] = StageTime(processes * seconds / _HOUR, what)
    if run.directory.finished("rank") is not None:
        ranking = next(iter(read_rankings(run).values()))
        what = "ground truth of the ranking check"
        found["truth"] = StageTime(ranking.seconds["truth"] / _HOUR, what)
    if run.directory.finished("export") is not None:
        found["export"] = StageTime(None, "1 process")
    return found


def _processes(count: int, threads: int, device: str) -> str:
    processes = f"{count} process{'es' if count > 1 else ''}"
    if device != "cpu":
        return f"{processes} on {device}"
    of = f"{threads}" if threads else "all"
    return f"{processes} of {of} CPU thread{'' if of == '1' else 's'}"


def links(run: Run) -> dict[str, str]:
    """What shows more of the run: a command or an address by name."""
    found = {}
    if command := run.tracker.view_command():
        found["MLflow"] = command
    journal = run.directory.stage("search") / JOURNAL_FILE
    if journal.exists():
        found["Optuna’s dashboard"] = f"optuna-dashboard {quote(str(journal.resolve()))}"
    return found


_FIGURES = "figures"


def report(run: Run, *, tables: Iterable[Path] = (), png: bool = False) -> None:
    """Write the page, the front, the table of retrained networks, and a summary in Markdown.

    Args:
        run: with a finished space stage.
        tables: of layer times of other devices.
        png: whether figures are also drawn as PNG files.
    """
    data, folder = gather(run, tables), run.directory.stage("report")
    for line in write_all(data, folder, png=png):
        run.progress.say(f"report: {line}")
    begin_tracking(run)
    for name in (PAGE_FILE, TABLE_FILE, FRONT_CSV, FRONT_JSON, MARKDOWN, _FIGURES):
        if (folder / name).exists():
            run.tracker.artifact(PARENT, folder / name, "report")
    run.progress.say(f"report: {folder / PAGE_FILE}")


def write_for_now(run: Run, *, tables: Iterable[Path] = (), seconds: int) -> bool:
    """Write the page alone, while another process goes on with the run; whether it is finished.

    Args:
        run: that is going on; nothing but the page is written.
        tables: as in `report`.
        seconds: after which the page asks for itself again, as long as the run is not finished.
    """
    data = gather(run, tables)
    again = seconds if data.unfinished else 0
    write_page(data, run.directory.stage("report") / PAGE_FILE, again)
    return not data.unfinished


def gather(run: Run, tables: Iterable[Path] = ()) -> ReportData:
    """Everything that the report shows, from the files of the run directory.

    Args:
        run: with a finished space stage.
        tables: of layer times of other devices.

    Raises:
        RunDirectoryError: files that do not hold what they should.
        LatencyError: a table that cannot be read, or of another network.
    """
    candidates = candidates_so_far(run)
    chosen, retrained = chosen_so_far(run, candidates), results_so_far(run)
    images = read_summary(run.data.folder)
    known = (*candidates, *chosen.values())
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
        correct=correct(run, retrained),
        val_looks=count_validations(run.directory.path / LOOKS_FILE),
        controls=run.config.retrain.baselines,
        latencies=latencies(run, known, retrained, [read_table(path) for path in tables]),
        effects=effects_of_sites(run.space, candidates),
        by_class=by_class(run, retrained),
        class_names=class_names(run),
        digest=str(images["digest"]),
        skipped=len(images["problems"]),
        recipe=recipe_digest(run),
        times=stage_times(run, retrained),
        unfinished=stages_left(run),
        links=links(run),
        run=quote(str(run.directory.path)),
    )


def _history(run: Run) -> tuple[dict[str, float], ...]:
    if run.directory.finished("supernet") is None:
        return ()
    path = run.directory.stage("supernet") / HISTORY_FILE
    with reading(path):
        rows = read_document(path, SCHEMA, "epochs")["epochs"]
        check_history(rows)
        return read_as(tuple[dict[str, float], ...], rows)


def correct(run: Run, retrained: Sequence[Retrained]) -> dict[str, Matrix]:
    """Whether each val image was right, by architecture; where every training has kept that."""
    return {
        identity: np.array([row["predicted"] == row["target"] for row in rows], float)
        for identity, rows in _judged(run, retrained)
    }


def by_class(run: Run, retrained: Sequence[Retrained]) -> dict[str, Matrix]:
    """Accuracy by class, mean over seeds, by architecture; shape ``(classes,)``."""
    classes, found = len(class_names(run)), dict[str, Matrix]()
    for identity, rows in _judged(run, retrained):
        targets = rows[0]["target"]
        right = np.mean([row["predicted"] == row["target"] for row in rows], axis=0)
        there = np.bincount(targets, minlength=classes)
        found[identity] = np.bincount(targets, right, classes) / np.maximum(there, 1)
    return found


def _judged(
    run: Run, retrained: Sequence[Retrained]
) -> Iterable[tuple[str, list[dict[str, Matrix]]]]:
    """What every training of an architecture has made of the val images, where all kept that."""
    folder = run.directory.stage("retrain")
    for one in retrained:
        identity = one.network.architecture.id
        files = [
            training_folder(folder, identity, result.seed) / JUDGED_FILE for result in one.runs
        ]
        if all(file.exists() for file in files):
            yield identity, [_answers(file, len(class_names(run))) for file in files]


def _answers(path: Path, classes: int) -> dict[str, Matrix]:
    """The classes that a training has predicted, and those that are right.

    Raises:
        RunDirectoryError: the file holds something else.
    """
    with reading(path, SafetensorError, OSError):
        found = load_file(path)
        predicted, target = found["predicted"], found["target"]
        if predicted.ndim != 1 or predicted.shape != target.shape:
            raise ValueError(f"found shapes {predicted.shape} and {target.shape}")
        if (
            not len(target)
            or target.dtype.kind != "i"
            or not 0 <= target.min() <= target.max() < classes
        ):
            raise ValueError(f"found no classes, or others than 0 to {classes - 1}")
    return found


def write_if_ready(
    path: Path, overrides: Sequence[str], tables: Sequence[Path], seconds: int
) -> tuple[str, bool]:
    """Write the page of what there is; what may be said of it, and whether the run is finished.

    Args:
        path: the run directory, which may not be there yet.
        overrides: of settings that decide no result.
        tables: of layer times of other devices.
        seconds: after which the page asks for itself again.

    Raises:
        RunDirectoryError: a link leads out of it; or as `look_at_run`.
    """
    if not (path / CONFIG_FILE).exists():
        return f"{path}: waiting for the run to begin", False
    check_links(path)
    run = look_at_run(path, overrides)
    if run.directory.finished("space") is None:
        return f"{path}: waiting for its search space", False
    finished = write_for_now(run, tables=tables, seconds=seconds)
    page = run.directory.stage("report") / PAGE_FILE
    if finished:
        return f"{page}: the run is finished", True
    return f"{page}: written every {seconds} s while the run goes on", False


def compare_runs(
    paths: Sequence[Path], out: Path
) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """Write the page; the rows of its first table, and the settings that differ.

    Args:
        paths: run directories, two or more.
        out: the page.

    Raises:
        RunDirectoryError: fewer than two, the same one twice, or one that has no search space yet;
            or the page would be among a run's own files, or its path is not UTF-8.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunDirectoryError("octnas compare: give two or more different run directories")
    check_name(out)
    if inside := [path for path in paths if out.resolve().is_relative_to(path.resolve())]:
        raise RunDirectoryError(
            f"{out}: lies in {inside[0]}, which is compared; give another --out"
        )
    runs = [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]
    write_runs_page(runs, out)
    return rank_rows(runs), differing(runs)


def _read(path: Path, label: str) -> ComparedRun:
    run = look_at_run(path)
    if run.directory.finished("space") is None:
        raise RunDirectoryError(f"{path}: has no search space yet, so there is nothing to compare")
    # The file leaves passwords out.
    settings = flat(run.document.values)
    return ComparedRun(label, gather(run), settings)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; whole paths where names are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
