"""What a report says of a run besides its results: data, settings, versions, hours, links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from shlex import quote

from octnas.data.image_list import read_summary
from octnas.data.images import preparation
from octnas.data.settings import ImagesSettings
from octnas.documents import read_as
from octnas.pipeline.opening import Run
from octnas.pipeline.place import RUN_FILE, SCHEMA
from octnas.pipeline.proxies import read_proxies
from octnas.pipeline.rank import read_rankings
from octnas.pipeline.search import JOURNAL_FILE
from octnas.pipeline.search import read_seconds as search_seconds
from octnas.pipeline.supernet import read_seconds as supernet_seconds
from octnas.report.data import StageTime
from octnas.report.formats import plural
from octnas.results import Retrained
from octnas.run_directory import digest, read_document, reading
from octnas.settings import flatten

_HOUR = 3600.0


@dataclass(frozen=True)
class _Record:
    """What the report says of what `octnas.pipeline.opening` notes of a command."""

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
        documents = read_document(path, SCHEMA, "runs")["runs"]
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
    settings["ranks"] = run.config.retrain.ranks  # batch-norm statistics are each process's own
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
        workers = config.supernet.workers
        hours = workers * supernet_seconds(run) / _HOUR
        found["supernet"] = StageTime(hours, _processes(workers, config.supernet.threads, device))
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
        ranks = config.retrain.ranks
        each = _processes(ranks, config.retrain.threads, device)
        what = f"{plural(trainings, 'training')}, {each} each"
        found["retrain"] = StageTime(ranks * seconds / _HOUR, what)
    if run.directory.finished("proxies") is not None:
        found["proxies"] = StageTime(read_proxies(run).seconds / _HOUR, "short trainings")
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
