"""An experiment and its run directory, checked against each other before anything runs.

Looking at a run directory that another process may be writing to.

A run that no other process works on meanwhile.

Whether a folder is the directory of a run, or may become one.

Sending the records of a run directory that MLflow does not have yet.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from octnas.config import (
    RunConfig,
    check_config,
    default_experiment,
    load_document,
    resolved,
    resolved_paths,
    with_passwords,
)
from octnas.data.images import Data
from octnas.device import choose_device
from octnas.errors import ConfigError, LatencyError, RunDirectoryError, SettingError
from octnas.io.credentials import redact, redact_all
from octnas.io.files import DRAFT, read_as, remove_all_drafts, writable, write_json, write_text
from octnas.io.yaml import Document
from octnas.pipeline.fingerprints import fingerprint
from octnas.report.write import PAGE_FILE
from octnas.runtime.directory import (
    STAGES,
    WHOLE_RUN,
    RunDirectory,
    check_links,
    read_document,
    read_json,
    reading,
)
from octnas.runtime.lock import FOLDER, held, was_held
from octnas.runtime.progress import Progress, Quiet
from octnas.space.budgets import Costs, check_budgets, costs_of
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.latency import LatencyTable
from octnas.space.search_space import SearchSpace
from octnas.tracking.progress import FILE as SENT_FILE
from octnas.tracking.tracker import Tracker, sync_runs

RUN_SCHEMA = 1
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
# What a file system has at its root is nobody's.
_NOBODYS = ("lost+found",)


def check_name(path: Path) -> None:
    """Refuse a path that no page, record or batch file could hold, before anything is written.

    Args:
        path: of a file or folder, which need not be there yet.

    Raises:
        RunDirectoryError: it is not UTF-8, or what a link there leads to is not.
    """
    # Unlike `Path.resolve`, it takes no offence at links in a circle.
    for name in (str(path), os.path.realpath(path)):
        if not writable(name):
            raise RunDirectoryError(f"{name!r}: is not UTF-8, so no file could hold it; rename it")


def check_place(path: Path) -> None:
    """Refuse a folder of others' files, before anything in it is removed or written over.

    Args:
        path: of the run directory, which need not be there yet.

    Raises:
        RunDirectoryError: it holds something, and no run; the record of runs there is spoilt; or
            as `check_name`.
        OSError: it cannot be looked at.
    """
    check_name(path)
    try:
        names = {entry.name for entry in path.iterdir()}.difference(_NOBODYS)
    except (FileNotFoundError, NotADirectoryError):
        # Whoever makes it says what is wrong with its path.
        return
    if RUN_FILE in names:
        with reading(path / RUN_FILE):
            read_document(path / RUN_FILE, RUN_SCHEMA, "runs")
        return
    # The first that is made there is the lease, or a draft of the record where there is none.
    if was_held(path) or all(_begun(path / name) for name in names):
        return
    raise RunDirectoryError(
        f"{path}: is not a run directory, and holds other files; give a new folder or an empty one"
    )


def _begun(entry: Path) -> bool:
    """Whether a process that was killed at the very beginning may have left it."""
    if entry.name == FOLDER and entry.is_dir():
        return all(inner.name.startswith(".") for inner in entry.iterdir())
    return entry.name.startswith(f".{RUN_FILE}{DRAFT}")


SPACE_FILE = "space.json"
TABLE_FILE = "latency.json"
_VERSIONS = ("octnas", "torch", "torchvision", "timm", "optuna", "ray", "mlflow", "numpy")


@dataclass(frozen=True)
class Run:
    """An experiment that is about to run.

    Attributes:
        document: the experiment file, by which errors name file and line.
        config: the checked settings, passwords included; never written as they are.
        directory: where the stages read and write.
        tracker: MLflow.
        progress: bars and lines for the user.
    """

    document: Document
    config: RunConfig
    directory: RunDirectory
    tracker: Tracker
    progress: Progress

    @cached_property
    def data(self) -> Data:
        """The data with the image list that the data stage has written."""
        return Data(self.config.data, self.directory.stage("data").resolve())

    @cached_property
    def space(self) -> SearchSpace:
        """The search space that the space stage has written."""
        path = self.directory.stage("space") / SPACE_FILE
        with reading(path):
            space = SearchSpace.from_dict(read_json(path))
            read_as(int, space.backbone_args["num_classes"])
        return space

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in MACs, or in what else they bound.

        Raises:
            BudgetError: a budget on another cost that no architecture meets.
        """
        budgets = self.config.space.budgets
        return tuple(entry.resolve(self.space, self.costs) for entry in budgets)

    @cached_property
    def table(self) -> LatencyTable | None:
        """The latency table that the space stage has taken over; None where there is none."""
        path = self.directory.stage("space") / TABLE_FILE
        if not self.config.latency.table:
            return None
        with reading(path, LatencyError):
            return LatencyTable.from_dict(read_json(path))

    @cached_property
    def costs(self) -> Costs:
        """What budgets may bound.

        Raises:
            LatencyError: the table is of another network.
        """
        return costs_of(self.space, self.table)

    @cached_property
    def levels(self) -> CostLevels:
        """The architectures by MACs.

        Raises:
            BudgetError: a budget that no architecture meets.
        """
        levels = CostLevels(self.space)
        check_budgets(self.budgets, levels)
        return levels

    @contextmanager
    def settings_of(self, *section: str) -> Iterator[None]:
        """Say file, line and whole key of a setting that turns out to be wrong inside.

        Raises:
            ConfigError: in the place of a `SettingError` about a key of the section.
        """
        try:
            yield
        except SettingError as error:
            place = self.document.place((*section, *error.key.split(".")))
            raise ConfigError(f"{place}: found {error.found!r}, allowed: {error.allowed}") from None

    def directory_of(self, stage: str) -> RunDirectory:
        """Where a stage writes: what no supernet takes part in may be another run's."""
        return _directory_of(self.config, self.directory, stage)

    def fingerprint(self, stage: str) -> dict[str, Any]:
        """What decides the results of a stage: its settings, its inputs and the schema."""
        return fingerprint(self.config, stage)


def open_run(
    experiment: Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    fresh: str | None = None,
    stages: Sequence[str] = WHOLE_RUN,
    progress: Progress,
) -> Run:
    """Open an experiment file with its run directory, or a run directory with its own settings.

    Args:
        experiment: a YAML file, or the directory of an earlier run.
        overrides: ``section.key=value``.
        run_dir: by default ``runs/NAME`` below the working directory.
        fresh: a stage to do anew, with what depends on it; one of ``stages``.
        stages: what is going to be done.
        progress: bars and lines for the user.

    Raises:
        ConfigError: a mistake in the experiment file.
        RunDirectoryError: results in the run directory that were made with other settings; or it
            is a folder of other files.
    """
    document, config = read_experiment(experiment, overrides)
    directory = RunDirectory(run_dir or default_directory(experiment, config))
    check_fresh(fresh, stages)
    check_place(directory.path)
    if fresh is not None:
        if _directory_of(config, directory, fresh) is not directory:
            raise ConfigError(
                f"--fresh {fresh}: its results are those of {config.ranking.truth_from}; redo "
                "them there, or set ranking.truth_from to nothing"
            )
        check_stages(directory, config, upto=fresh)
        gone = directory.forget(fresh)
        progress.say(f"--fresh {fresh}: removed the results of {', '.join(gone)}")
    check_stages(directory, config)
    _write_records(directory, config, overrides)
    tracker = Tracker(
        config.tracking, experiment=config.name, directory=directory.path, say=progress.say
    )
    return Run(document, config, directory, tracker, progress)


def check_fresh(fresh: str | None, stages: Sequence[str]) -> None:
    """Refuse to do a stage anew that is none of those that are going to be done.

    Raises:
        ConfigError: naming those.
    """
    if fresh is not None and fresh not in stages:
        raise ConfigError(f"--fresh: found {fresh!r}, allowed here: {', '.join(stages)}")


def default_directory(experiment: Path, config: RunConfig) -> Path:
    """The run directory of an experiment: ``runs/NAME``, or that which was given in its place."""
    return experiment if experiment.is_dir() else Path("runs") / config.name


def read_experiment(experiment: Path, overrides: Sequence[str]) -> tuple[Document, RunConfig]:
    """As `load_experiment`, with the passwords.

    Raises:
        ConfigError: a mistake in the file, or a password that the environment does not give.
        RunDirectoryError: a directory that is none of a run.
    """
    document, config = load_experiment(experiment, overrides)
    return document, with_passwords(config)


def load_experiment(experiment: Path, overrides: Sequence[str]) -> tuple[Document, RunConfig]:
    """The settings of an experiment file or a run directory, checked; its paths are absolute.

    Raises:
        ConfigError: a mistake in the file.
        RunDirectoryError: a directory that is none of a run.
    """
    source = experiment / CONFIG_FILE if experiment.is_dir() else experiment
    if experiment.is_dir() and not source.exists():
        raise RunDirectoryError(f"{experiment}: is not a run directory, it has no {CONFIG_FILE}")
    document = load_document(source, overrides, generated=experiment.is_dir())
    return document, resolved_paths(check_config(document))


def versions() -> dict[str, str]:
    """Of octnas and what decides its results."""
    return {name: version(name) for name in _VERSIONS}


def check_stages(directory: RunDirectory, config: RunConfig, upto: str | None = None) -> None:
    """Refuse results that were made with other settings, see `RunDirectory.check`."""
    for stage in STAGES:
        if stage == upto:
            return
        if _directory_of(config, directory, stage) is directory:
            directory.check(stage, fingerprint(config, stage))


def _directory_of(config: RunConfig, directory: RunDirectory, stage: str) -> RunDirectory:
    """Where a stage writes: what no supernet takes part in may be another run's."""
    other = config.ranking.truth_from
    if not other or stage != "truth" or Path(other).resolve() == directory.path.resolve():
        return directory
    return RunDirectory(Path(other))


def _write_records(directory: RunDirectory, config: RunConfig, overrides: Sequence[str]) -> None:
    """The resolved settings, and with what they were run, each time anew; without passwords."""
    path = directory.path / RUN_FILE
    record: dict[str, Any] = {"schema": RUN_SCHEMA, "name": config.name, "runs": []}
    if path.exists():
        record = read_document(path, RUN_SCHEMA, "runs")
    this = {
        "seed": config.seed,
        "retrain_seeds": list(config.retrain.seeds),
        "overrides": [redact(override) for override in overrides],
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(choose_device("auto")) if config.device == "auto" else config.device,
    }
    with reading(path):
        read_as(list[dict[str, Any]], record["runs"])
        last = {key: value for key, value in (record["runs"] or [{}])[-1].items() if key != "time"}
        if last != this:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            record["runs"].append({"time": now, **this})
    # The record first: by it the folder is known as that of a run.
    write_json(path, record)
    text = yaml.safe_dump(redact_all(resolved(config)), sort_keys=False, allow_unicode=True)
    write_text(directory.path / CONFIG_FILE, text)


def look_at_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """A run directory that another process may be writing to; nothing of it is written.

    Args:
        path: the run directory.
        overrides: of settings that decide no result.

    Raises:
        RunDirectoryError: it is none, was made with other settings than the overrides, or its name
            is not UTF-8.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    check_name(path)
    document, config = read_experiment(path, overrides)
    directory = RunDirectory(path)
    if overrides:
        # By itself a run fits its settings, whatever version of octnas has made it.
        check_stages(directory, config)
    tracker = Tracker(config.tracking, experiment=config.name, directory=path)
    return Run(document, config, directory, tracker, Quiet())


def where(experiment: Path | None, overrides: Sequence[str], run_dir: Path | None) -> Path:
    """The run directory that is meant; the experiment is not looked at where one is given.

    Args:
        experiment: by default the shipped digits.
        overrides: ``section.key=value``.
        run_dir: in the place of the experiment's own.

    Raises:
        ConfigError: a mistake in the experiment file.
    """
    if run_dir is not None:
        return run_dir
    experiment = experiment or default_experiment()
    return default_directory(experiment, read_experiment(experiment, overrides)[1])


@contextmanager
def owned(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that works on a run directory, rid of what killed ones were writing.

    Args:
        directory: its path; see `held`.
        say: as of `held`.

    Raises:
        RunDirectoryError: as `held`; it is a folder of other files, or a link leads out of it.
    """
    check_place(directory)
    # Before even the lease, which removes those of earlier owners.
    check_links(directory)
    with held(directory, say):
        RunDirectory(directory).remove_forgotten()
        _remove_drafts(directory)
        yield
        # Of workers that were killed meanwhile.
        _remove_drafts(directory)


def _remove_drafts(directory: Path) -> None:
    # The page may be written by `octnas report --watch`, and records be sent by `octnas sync`.
    remove_all_drafts(directory, PAGE_FILE, SENT_FILE)


@contextmanager
def own_run(
    experiment: Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    fresh: str | None = None,
    stages: Sequence[str] = WHOLE_RUN,
    progress: Progress,
) -> Iterator[Run]:
    """Open a run, see `open_run`, and be the only one who works on it within a ``with`` block.

    Raises:
        RunDirectoryError: as `owned`; or as `open_run`.
        ConfigError: as `open_run`.
    """
    # Before anything is made: a mistake leaves no folder behind.
    check_fresh(fresh, stages)
    config = read_experiment(experiment, overrides)[1]
    with owned(run_dir or default_directory(experiment, config), progress.say):
        yield open_run(
            experiment,
            overrides=overrides,
            run_dir=run_dir,
            fresh=fresh,
            stages=stages,
            progress=progress,
        )


def sync_run(path: Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Send what is left, with the run directory's own settings.

    Args:
        path: the run directory.
        overrides: ``section.key=value``, such as another ``tracking.uri``.

    Returns:
        Lines that say what was sent.

    Raises:
        RunDirectoryError: it is none, a link leads out of it, or its name is not UTF-8.
        TrackingError: MLflow is away or cannot be used.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    check_name(path)
    _, config = read_experiment(path, overrides)
    check_links(path)
    return sync_runs(config.tracking, config.name, path)
