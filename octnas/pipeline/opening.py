"""An experiment and its run directory, checked against each other before anything runs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from octnas.budgets import check_budgets
from octnas.config import RunConfig, load_config, resolved
from octnas.costs import Budget
from octnas.credentials import HIDDEN, redact, redact_all
from octnas.errors import ConfigError, RunDirectoryError
from octnas.levels import CostLevels
from octnas.pipeline.progress import Progress
from octnas.run_directory import STAGES, RunDirectory, digest, read_json, write_json, write_text
from octnas.settings import flatten
from octnas.space import SearchSpace
from octnas.tracking.tracker import Tracker

SCHEMA = 1
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
STORAGE_VARIABLE = "OCTNAS_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_VERSIONS = ("octnas", "torch", "torchvision", "timm", "optuna", "ray", "mlflow", "numpy")


@dataclass(frozen=True)
class Run:
    """An experiment that is about to run.

    Attributes:
        config: the checked settings, passwords included; never written as they are.
        directory: where the stages read and write.
        tracker: MLflow.
        progress: bars and lines for the user.
    """

    config: RunConfig
    directory: RunDirectory
    tracker: Tracker
    progress: Progress

    @cached_property
    def space(self) -> SearchSpace:
        """The search space that the space stage has written."""
        return SearchSpace.from_dict(read_json(self.directory.stage("space") / "space.json"))

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in MACs."""
        return tuple(entry.resolve(self.space) for entry in self.config.space.budgets)

    @cached_property
    def levels(self) -> CostLevels:
        """The architectures by MACs.

        Raises:
            BudgetError: a budget that no architecture meets.
        """
        levels = CostLevels(self.space)
        check_budgets(self.budgets, levels)
        return levels

    def fingerprint(self, stage: str) -> dict[str, Any]:
        """What decides the results of a stage: its settings, its inputs and the schema."""
        return fingerprint(self.config, stage)


def open_run(
    experiment: Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    fresh: str | None = None,
    progress: Progress,
) -> Run:
    """Open an experiment file with its run directory, or a run directory with its own settings.

    Args:
        experiment: a YAML file, or the directory of an earlier run.
        overrides: ``section.key=value``.
        run_dir: by default ``runs/NAME`` below the working directory.
        fresh: a stage to do anew, with what depends on it.
        progress: bars and lines for the user.

    Raises:
        ConfigError: a mistake in the experiment file.
        RunDirectoryError: results in the run directory that were made with other settings.
    """
    source = experiment / CONFIG_FILE if experiment.is_dir() else experiment
    if experiment.is_dir() and not source.exists():
        raise RunDirectoryError(f"{experiment}: is not a run directory, it has no {CONFIG_FILE}")
    config = _with_passwords(load_config(source, overrides))
    path = run_dir or (experiment if experiment.is_dir() else Path("runs") / config.name)
    directory = RunDirectory(path)
    if fresh is not None and fresh not in STAGES:
        raise ConfigError(f"--fresh: found {fresh!r}, allowed: {', '.join(STAGES)}")
    if fresh is not None:
        _check_stages(directory, config, upto=fresh)
        gone = directory.forget(fresh)
        progress.say(f"--fresh {fresh}: removed the results of {', '.join(gone)}")
    _check_stages(directory, config)
    _write_records(directory, config, overrides)
    tracker = Tracker(
        config.tracking,
        experiment=config.name,
        store=path.resolve().parent,
        ids_file=path / "tracking.json",
    )
    return Run(config, directory, tracker, progress)


def fingerprint(config: RunConfig, stage: str) -> dict[str, Any]:
    """What decides the results of a stage, by dotted key."""
    base = STAGES[stage]
    found: dict[str, Any] = {"schema": SCHEMA}
    if base is not None:
        found[f"input.{base}"] = digest(fingerprint(config, base))
    sections: Mapping[str, Mapping[str, Any]] = {
        "space": {"space": config.space, "data": config.data},
        "supernet": {"supernet": config.supernet},
        "search": {"search": config.search},
        "retrain": {"retrain": config.retrain},
    }
    for name, settings in sections.get(stage, {}).items():
        found.update(flatten(settings, name))
    if stage in ("supernet", "search"):
        found["seed"] = config.seed
    return found


def _check_stages(directory: RunDirectory, config: RunConfig, upto: str | None = None) -> None:
    for stage in STAGES:
        if stage == upto:
            return
        directory.check(stage, fingerprint(config, stage))


def _with_passwords(config: RunConfig) -> RunConfig:
    """The URLs of study and tracking, from the environment where it gives them."""
    url = config.search.storage or os.environ.get(STORAGE_VARIABLE, "")
    storage = _whole("search.storage", url, STORAGE_VARIABLE)
    uri = _whole("tracking.uri", config.tracking.uri, TRACKING_VARIABLE)
    return replace(
        config,
        search=replace(config.search, storage=storage),
        tracking=replace(config.tracking, uri=uri),
    )


def _whole(key: str, url: str, variable: str) -> str:
    """A URL with its password, which a run directory leaves out.

    Raises:
        ConfigError: it was left out, and the environment does not give it.
    """
    if HIDDEN not in url:
        return url
    if not os.environ.get(variable):
        raise ConfigError(
            f"{key}: found {url!r}, whose password was left out of the run directory; "
            f"set the whole URL in the environment variable {variable}"
        )
    return os.environ[variable]


def _write_records(directory: RunDirectory, config: RunConfig, overrides: Sequence[str]) -> None:
    """The resolved settings, and what they are run with; without passwords."""
    text = yaml.safe_dump(redact_all(resolved(config)), sort_keys=False, allow_unicode=True)
    write_text(directory.path / CONFIG_FILE, text)
    path = directory.path / RUN_FILE
    before: Mapping[str, Any] = read_json(path) if path.exists() else {}
    write_json(
        path,
        {
            "schema": SCHEMA,
            "name": config.name,
            "seed": config.seed,
            "retrain_seeds": list(config.retrain.seeds),
            "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
            "overrides": [redact(override) for override in overrides],
            "versions": {name: version(name) for name in _VERSIONS},
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    )
