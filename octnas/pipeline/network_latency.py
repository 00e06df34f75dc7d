"""The latency of a run's retrained networks, on this machine and others."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from octnas.errors import ArchitectureError, RunDirectoryError
from octnas.io.files import read_json, write_json
from octnas.measure.latency import machine_name, time_networks
from octnas.measure.settings import LatencySettings
from octnas.pipeline.latency import default_file, kept_file
from octnas.pipeline.run import Run
from octnas.pipeline.so_far import results_so_far
from octnas.report.data import Latencies, Timing, most_known_first
from octnas.results.front import Candidate
from octnas.results.networks import PLAIN, Retrained
from octnas.space.latency import LatencyTable

SCHEMA = 1
_CONDITIONS = ("device", "backend", "precision", "batch", "threads")


def time_retrained(run: Run, settings: LatencySettings) -> tuple[Path, Latencies]:
    """Time every retrained network, and write ``latency/DEVICE-….json``.

    Raises:
        RunDirectoryError: nothing is retrained yet.
        SettingError: a backend or device that is not available.
    """
    architectures = {
        one.network.architecture.id: one.network.architecture for one in results_so_far(run)
    }
    if not architectures:
        raise RunDirectoryError(
            f"{run.directory.path}: no network is retrained yet; run `octnas retrain`"
        )
    times = time_networks(list(architectures.values()), settings)
    conditions = {
        "device": settings.name or machine_name(settings.device),
        "backend": settings.backend,
        "precision": settings.precision,
        "batch": settings.batch,
        "threads": settings.threads,
    }
    path = run.directory.path / default_file(settings)
    networks = {name: asdict(one) for name, one in times.items()}
    about = {"schema": SCHEMA, **conditions, "repeats": settings.repeats}
    write_json(path, {**about, "networks": networks})
    return path, _read(path)


def latencies(
    run: Run,
    candidates: Sequence[Candidate],
    retrained: Sequence[Retrained],
    tables: Sequence[LatencyTable] = (),
) -> tuple[Latencies, ...]:
    """Latencies by device; the device with most of the retrained networks first.

    Args:
        run: with measurements in the folder ``latency``.
        candidates, retrained: to predict; chosen candidates have their measured latency.
        tables: of the same network, besides the run's own.

    Raises:
        LatencyError: a table of another network.
    """
    found: dict[tuple[str, str, str, int, int], Latencies] = {}
    for table in (*([run.table] if run.table else []), *tables):
        one = _predicted(run, table, candidates, retrained)
        found[one.conditions] = one
    for path in sorted((run.directory.path / "latency").glob("*.json")):
        one = _read(path)
        before = found.get(one.conditions, one)
        found[one.conditions] = replace(before, measured={**before.measured, **one.measured})
    return most_known_first(
        list(found.values()), {one.network.architecture.id for one in retrained}
    )


def _predicted(
    run: Run,
    table: LatencyTable,
    candidates: Sequence[Candidate],
    retrained: Sequence[Retrained],
) -> Latencies:
    cost, predicted = table.cost(run.space), dict[str, float]()
    alphas: dict[str, Mapping[str, float]] = {one.id: one.alphas for one in candidates}
    for one in retrained:
        if one.network.role not in PLAIN:
            alphas[one.network.architecture.id] = one.network.architecture.alphas
    for identity, own in alphas.items():
        try:
            predicted[identity] = cost.of(own) * 1e-9
        except ArchitectureError:
            continue  # a baseline off the grid, which the table does not cover
    where = {key: getattr(table, key) for key in _CONDITIONS}
    # The search may have measured on another machine than the table's.
    here = table is run.table and kept_file(run, table.device).exists()
    measured = {
        one.id: Timing(one.metrics["measured_latency"])
        for one in candidates
        if here and "measured_latency" in one.metrics
    }
    return Latencies(**where, measured=measured, predicted=predicted, own=table is run.table)


def _read(path: Path) -> Latencies:
    measured = read_json(path, dict[str, Timing], schema=SCHEMA, key="networks")
    return replace(read_json(path, Latencies, schema=SCHEMA), measured=measured)
