"""Opening a run: an experiment and its run directory, checked against each other and locked."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shlex import quote
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
from octnas.errors import ConfigError, RunDirectoryError, SettingError
from octnas.io.credentials import redact, redact_all
from octnas.io.files import DRAFT, read_json, remove_all_drafts, write_json, write_text
from octnas.io.yaml import Document
from octnas.pipeline.fingerprints import fingerprint, whole_run
from octnas.report.write import PAGE_FILE
from octnas.runtime.directory import (
    CONVERT,
    MARKER,
    ORIGINAL,
    STAGES,
    WHOLE_RUN,
    RunDirectory,
    check_links,
)
from octnas.runtime.lock import LOCK_FILE, held
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
EXPERIMENT_FILE = "experiment.yaml"
"""The experiment file, where a command has written it into the run directory."""
RUN_FILE = "run.json"
SPACE_FILE = "space.json"
TABLE_FILE = "latency.json"
# Of a file that only lists the starts of a run.
_EMPTY = f'write {{"schema": {RUN_SCHEMA}, "runs": []}} there'
_VERSIONS = ("octnas", "torch", "torchvision", "timm", "optuna", "ray", "mlflow", "numpy")


@dataclass(frozen=True)
class Run:
    """An experiment and its run directory.

    Attributes:
        document: the experiment file, from which errors take file and line.
        config: the checked settings, with passwords; `redact` them before writing.
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
        """The data, with the image list of the data stage."""
        return Data(self.config.data, self.directory.stage("data").resolve())

    @cached_property
    def space(self) -> SearchSpace:
        """The search space, as written by the space stage."""
        path = self.directory.stage("space") / SPACE_FILE
        return read_json(path, SearchSpace)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, resolved to MACs or to whatever other cost they bound.

        Raises:
            BudgetError: a budget on another cost that no architecture meets.
        """
        budgets = self.config.space.budgets
        return tuple(entry.resolve(self.space, self.costs) for entry in budgets)

    @cached_property
    def table(self) -> LatencyTable | None:
        """The latency table that the space stage copied; None without one."""
        path = self.directory.stage("space") / TABLE_FILE
        if not self.config.latency.table:
            return None
        return read_json(path, LatencyTable)

    @cached_property
    def costs(self) -> Costs:
        """The costs that budgets may bound.

        Raises:
            LatencyError: the table is of another network.
        """
        return costs_of(self.space, self.table)

    @cached_property
    def levels(self) -> CostLevels:
        """The architectures, by MACs.

        Raises:
            BudgetError: a budget that no architecture meets.
        """
        levels = CostLevels(self.space)
        check_budgets(self.budgets, levels)
        return levels

    @contextmanager
    def settings_of(self, *section: str) -> Iterator[None]:
        """Add file, line and full key to a `SettingError` raised in the block.

        Raises:
            ConfigError: instead of the `SettingError` about a key of the section.
        """
        try:
            yield
        except SettingError as error:
            place = self.document.place((*section, *error.key.split(".")))
            raise ConfigError(f"{place}: found {error.found!r}, allowed: {error.allowed}") from None

    def directory_of(self, stage: str) -> RunDirectory:
        """Where a stage writes; the ground truth may belong to another run."""
        return _directory_of(self.config, self.directory, stage)

    def fingerprint(self, stage: str) -> dict[str, Any]:
        """The settings and inputs that decide the results of a stage."""
        return fingerprint(self.config, stage)


@contextmanager
def open_run(
    experiment: Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    fresh: str | None = None,
    stages: Sequence[str] = WHOLE_RUN,
    progress: Progress,
) -> Iterator[Run]:
    """Check an experiment against its run directory, and hold the run lock within the block.

    Args:
        experiment: a YAML file, or the directory of an earlier run.
        overrides: ``section.key=value``.
        run_dir: by default ``runs/NAME`` below the working directory.
        fresh: a stage to redo, with all that depend on it; one of ``stages``.
        stages: those that are going to run.
        progress: bars and lines for the user.

    Raises:
        ConfigError: a mistake in the experiment file.
        RunDirectoryError: as `locked`; or the run directory has results of other settings.
    """
    document, config = read_experiment(experiment, overrides)
    allowed = (*stages, CONVERT) if config.has_original else tuple(stages)
    if tuple(stages) == WHOLE_RUN:
        allowed = whole_run(config)
    if fresh is not None and fresh not in allowed:
        raise ConfigError(f"--fresh: found {fresh!r}, allowed here: {', '.join(allowed)}")
    directory = RunDirectory(run_dir or default_directory(experiment, config))
    if fresh is not None and _directory_of(config, directory, fresh) is not directory:
        raise ConfigError(
            f"--fresh {fresh}: these results belong to {config.ranking.truth_from}; redo them "
            "there, or leave ranking.truth_from empty"
        )
    with locked(directory.path, progress.say):
        if fresh is not None:
            check_stages(directory, config, upto=fresh)
            gone = directory.forget(fresh)
            progress.say(f"--fresh {fresh}: removed the results of {', '.join(gone)}")
        check_stages(directory, config)
        _write_records(directory, config, overrides)
        tracker = Tracker(
            config.tracking, experiment=config.name, directory=directory.path, say=progress.say
        )
        yield Run(document, config, directory, tracker, progress)


def write_experiment(directory: Path, text: str) -> Path:
    """Write an experiment file into a run directory, which need not exist yet.

    Raises:
        RunDirectoryError: the folder holds other files than a run's.
        ConfigError: it has another experiment file.
    """
    check_place(directory)
    path = directory / EXPERIMENT_FILE
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path}: exists with other settings; continue with `octnas run {quote(str(path))} "
            f"--run-dir {quote(str(directory))}`, or use another --run-dir"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


@contextmanager
def locked(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run directory (see `held`), free of leftovers of killed processes.

    Raises:
        RunDirectoryError: another process is using it; it holds other files than a run's; or a
            link leads out of it.
    """
    check_place(directory)
    # Before anything is written or removed there.
    check_links(directory)
    with held(directory, say):
        RunDirectory(directory).remove_forgotten()
        _remove_drafts(directory)
        yield
        # Those of workers that were killed meanwhile.
        _remove_drafts(directory)


def _remove_drafts(directory: Path) -> None:
    # `octnas report --watch` may be writing the page, and `octnas sync` be sending records.
    remove_all_drafts(directory, PAGE_FILE, SENT_FILE)


def check_place(path: Path) -> None:
    """Refuse a folder with other files than a run's; a missing one is fine.

    Raises:
        RunDirectoryError: it holds other files.
        OSError: it cannot be read.
    """
    try:
        entries = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return  # whoever makes it reports what is wrong with its path
    if (path / RUN_FILE).exists():
        read_json(
            path / RUN_FILE, list[dict[str, Any]], schema=RUN_SCHEMA, key="runs", remedy=_EMPTY
        )
    elif not all(map(_is_begun, entries)):
        raise RunDirectoryError(
            f"{path}: not a run directory, and not empty; give a new or empty folder"
        )


def _is_begun(entry: Path) -> bool:
    """Whether it is left by a run killed at its start, or is a ground truth for other runs."""
    return (
        entry.name in ("lost+found", EXPERIMENT_FILE)
        or entry.name.startswith((LOCK_FILE, f".{RUN_FILE}{DRAFT}"))
        or (entry.name in STAGES and (entry / MARKER).exists())
    )


def look_at_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """Open a run directory for reading, while another process may be writing to it.

    Raises:
        RunDirectoryError: it is none, or was made with other settings than the overrides.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    document, config = read_experiment(path, overrides)
    directory = RunDirectory(path)
    if overrides:
        # Without overrides a run always fits its own settings, whatever version has made it.
        check_stages(directory, config)
    tracker = Tracker(config.tracking, experiment=config.name, directory=path)
    return Run(document, config, directory, tracker, Quiet())


def sync_run(path: Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Send the records that MLflow does not have yet; returns lines that say what was sent.

    Raises:
        RunDirectoryError: it is not a run directory.
        TrackingError: MLflow is unreachable or cannot be used.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is not a run directory")
    _, config = read_experiment(path, overrides)
    return sync_runs(config.tracking, config.name, path)


def where(experiment: Path | None, overrides: Sequence[str], run_dir: Path | None) -> Path:
    """The run directory; the experiment is read only if ``run_dir`` is None.

    Raises:
        ConfigError: a mistake in the experiment file.
    """
    if run_dir is not None:
        return run_dir
    experiment = experiment or default_experiment()
    return default_directory(experiment, load_experiment(experiment, overrides)[1])


def default_directory(experiment: Path, config: RunConfig) -> Path:
    """``runs/NAME``, or the run directory that was given as the experiment."""
    return experiment if experiment.is_dir() else Path("runs") / config.name


def read_experiment(experiment: Path, overrides: Sequence[str]) -> tuple[Document, RunConfig]:
    """As `load_experiment`, with passwords from the environment.

    Raises:
        ConfigError: a mistake in the file, or a password that the environment lacks.
        RunDirectoryError: a folder that is not a run directory.
    """
    document, config = load_experiment(experiment, overrides)
    return document, with_passwords(config)


def load_experiment(experiment: Path, overrides: Sequence[str]) -> tuple[Document, RunConfig]:
    """The checked settings of an experiment file or a run directory, with absolute paths.

    Raises:
        ConfigError: a mistake in the file.
        RunDirectoryError: a folder that is not a run directory.
    """
    source = experiment / CONFIG_FILE if experiment.is_dir() else experiment
    if experiment.is_dir() and not source.exists():
        raise RunDirectoryError(f"{experiment}: is not a run directory, it has no {CONFIG_FILE}")
    document = load_document(source, overrides, generated=experiment.is_dir())
    return document, resolved_paths(check_config(document))


def versions() -> dict[str, str]:
    """Versions of octnas and of the libraries that decide its results."""
    return {name: version(name) for name in _VERSIONS}


def check_stages(directory: RunDirectory, config: RunConfig, upto: str | None = None) -> None:
    """Refuse results of other settings, see `RunDirectory.check`."""
    for stage in STAGES:
        if stage == upto:
            return
        if stage == ORIGINAL and not config.trains_original:
            continue  # perhaps of before there were weights
        if _directory_of(config, directory, stage) is directory:
            directory.check(stage, fingerprint(config, stage))


def _directory_of(config: RunConfig, directory: RunDirectory, stage: str) -> RunDirectory:
    """See `Run.directory_of`."""
    other = config.ranking.truth_from
    if not other or stage != "truth" or Path(other).resolve() == directory.path.resolve():
        return directory
    return RunDirectory(Path(other))


def _write_records(directory: RunDirectory, config: RunConfig, overrides: Sequence[str]) -> None:
    """Write the resolved settings without passwords, and what they were run with."""
    path = directory.path / RUN_FILE
    runs: list[dict[str, Any]] = []
    if path.exists():
        runs = read_json(path, list[dict[str, Any]], schema=RUN_SCHEMA, key="runs", remedy=_EMPTY)
    this = {
        "seed": config.seed,
        "retrain_seeds": list(config.retrain.seeds),
        "overrides": [redact(override) for override in overrides],
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(choose_device("auto")) if config.device == "auto" else config.device,
    }
    last = {key: value for key, value in (runs or [{}])[-1].items() if key != "time"}
    if last != this:
        runs.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **this})
    # First the record, which makes the folder a run directory.
    write_json(path, {"schema": RUN_SCHEMA, "name": config.name, "runs": runs})
    text = yaml.safe_dump(redact_all(resolved(config)), sort_keys=False, allow_unicode=True)
    write_text(directory.path / CONFIG_FILE, text)
