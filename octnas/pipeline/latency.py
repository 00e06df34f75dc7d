"""Latency tables of search spaces, and the latency of the networks that a search chooses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from octnas.data.image_list import ABOUT_FILE, read_summary
from octnas.io.files import write_json
from octnas.measure.latency import Log, machine_name, measure_networks, measure_table
from octnas.measure.settings import LatencySettings
from octnas.pipeline.run import Run, load_experiment
from octnas.pipeline.space import chosen_settings, space_of, space_without_data
from octnas.results.front import Candidate
from octnas.runtime.directory import RunDirectory
from octnas.space.costs import Budget
from octnas.space.latency import LatencyTable
from octnas.space.search_space import SearchSpace

KEPT_SUFFIX = ".measured.jsonl"


def experiment_space(experiment: Path, overrides: tuple[str, ...] = ()) -> SearchSpace:
    """The search space of an experiment file or a run directory, without reading its images.

    Raises:
        ConfigError: a mistake in the file.
        RunDirectoryError: not a run directory.
    """
    _, config = load_experiment(experiment, overrides)
    folder = RunDirectory(experiment).stage("data")
    if (folder / ABOUT_FILE).exists():
        return space_of(config, read_summary(folder).classes)
    return space_without_data(config)


def default_file(settings: LatencySettings) -> Path:
    """The default file of a table."""
    machine = settings.name or machine_name(settings.device)
    where = f"batch-{settings.batch}-threads-{settings.threads}"
    text = f"{machine}-{settings.backend}-{settings.precision}-{where}"
    return Path("latency") / f"{_slug(text)}.json"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def make_table(
    space: SearchSpace, settings: LatencySettings, out: Path, log: Log = lambda _: None
) -> LatencyTable:
    """Measure a latency table and write it; see `octnas.measure.latency.measure_table`.

    Measurements are kept beside the file, so that the same command resumes after an interruption.
    """
    table = measure_table(space, settings, out.with_name(out.name + KEPT_SUFFIX), log)
    write_json(out, table.to_dict())
    return table


def with_costs(run: Run, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with activation and peak memory, and predicted latency if there is a table."""
    return [replace(one, metrics={**one.metrics, **_costs(run, one)}) for one in candidates]


def _costs(run: Run, candidate: Candidate) -> dict[str, float]:
    found = {
        f"{name}_bytes": float(run.costs[name].of(candidate.alphas))
        for name in ("activation", "peak")
    }
    if "latency" in run.costs:
        found["latency"] = run.costs["latency"].of(candidate.alphas) * 1e-9
    return found


def latency_words(candidate: Candidate, budget: Budget) -> str:
    """The predicted and the measured latency of a candidate; empty if unknown.

    Says so if the measured one exceeds a budget on latency.
    """
    if "latency" not in candidate.metrics:
        return ""
    words = f", {candidate.metrics['latency'] * 1e3:.3f} ms predicted"
    if "measured_latency" in candidate.metrics:
        words += f", {candidate.metrics['measured_latency'] * 1e3:.3f} ms measured"
        limit = min(
            (one.upper * 1e-9 for one in budget.bounds if one.cost == "latency"), default=inf
        )
        if candidate.metrics["measured_latency"] > limit:
            words += f", above the budget of {limit * 1e3:.3f} ms"
    return words


def measure_chosen(run: Run, chosen: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """The chosen candidates with their measured latency, in seconds.

    Nothing is measured without a latency table, or with ``latency.measure: false``. The table
    determines backend, precision, batch size and threads.
    """
    table, use = run.table, run.config.latency
    if table is None or not use.measure:
        return dict(chosen)
    settings = chosen_settings(run, table)
    if table.device != (here := machine_name(use.device)):
        run.progress.say(
            f"search: the latency table is of {table.device}; measuring chosen networks on {here}"
        )
    alphas = [candidate.alphas for candidate in chosen.values()]
    seconds = measure_networks(run.space, alphas, settings, kept_file(run, here))
    return {
        name: replace(found, metrics={**found.metrics, "measured_latency": one})
        for (name, found), one in zip(chosen.items(), seconds, strict=True)
    }


def kept_file(run: Run, machine: str) -> Path:
    """Measurements of the chosen networks; by machine, since a search may resume on another."""
    return run.directory.stage("search") / f"latency-{_slug(machine)}{KEPT_SUFFIX}"
