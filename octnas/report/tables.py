"""The table of retrained networks, as rows and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from octnas.io.files import write_text
from octnas.report.data import ReportData
from octnas.report.verdicts import between
from octnas.results.networks import UNIFORM, VANILLA, Retrained

NOT_COMPARED = (UNIFORM, VANILLA)  # roles of which no difference to the uniform network is given
NOT_MEASURED = "not measured"
SHOWN_CLASSES = 3  # those that lost most


@dataclass(frozen=True)
class RetrainedRow:
    """One retrained network; the fields are the columns of the CSV, in this order.

    Attributes:
        role, budget: as in `octnas.results.networks.Network`.
        architecture: its id.
        macs, params, activation_bytes: for one image.
        macs_share: MACs as a share of the vanilla network's, 0 to 1.
        seeds: how many trainings there were.
        val_top1_mean_percent, val_top1_std_points: over seeds; the standard deviation (n - 1) is
            None with a single seed.
        val_loss_mean, val_loss_std: the same for the cross-entropy.
        seconds_mean: of one training.
        difference_to_uniform_points: of the mean top-1 to the uniform network of the same budget;
            None for that network itself, for vanilla, and where it was not retrained.
        difference_half_width_points: of its interval; None where none can be given.
        val_top5_mean_percent: None where it was not kept.
        val_top1_by_size_percent: mean top-1 by side of the test images: ``"32: 71.2; 48: 73.0"``.
        latency_device: with backend, precision, batch size and threads; the same in all rows, empty
            where nothing was measured.
        latency_median_ms, latency_p95_ms: measured, of a batch; None where they were not.
        latency_predicted_ms: from the table of layer times.
        classes_lost: those that lost most accuracy against vanilla, in points.
        initialisation: of its weights.
        seed_list: the seeds, with spaces.
        data_digest: of the images.
    """

    role: str
    budget: str
    architecture: str
    macs: int
    macs_share: float
    params: int
    activation_bytes: int
    seeds: int
    val_top1_mean_percent: float
    val_top1_std_points: float | None
    val_loss_mean: float
    val_loss_std: float | None
    seconds_mean: float
    difference_to_uniform_points: float | None
    difference_half_width_points: float | None
    val_top5_mean_percent: float | None
    val_top1_by_size_percent: str
    latency_device: str
    latency_median_ms: float | None
    latency_p95_ms: float | None
    latency_predicted_ms: float | None
    classes_lost: str
    initialisation: str
    seed_list: str
    data_digest: str


COLUMNS = tuple(field.name for field in fields(RetrainedRow))


def retrained_rows(data: ReportData) -> tuple[RetrainedRow, ...]:
    """One row for each network, in the order of the data."""
    uniform = {
        other.network.budget: other for other in data.retrained if other.network.role == UNIFORM
    }
    rows: list[RetrainedRow] = []
    for one in data.retrained:
        compared = one.network.role not in NOT_COMPARED
        rows.append(_row(data, one, uniform.get(one.network.budget) if compared else None))
    return tuple(rows)


def latency_ms(row: RetrainedRow) -> float | None:
    """The measured median, or else what is predicted."""
    return row.latency_predicted_ms if row.latency_median_ms is None else row.latency_median_ms


def latency_words(row: RetrainedRow) -> str:
    """The same in words, which tell one from the other."""
    found = latency_ms(row)
    predicted = " predicted" if row.latency_median_ms is None else ""
    return NOT_MEASURED if found is None else f"{found:.3f}{predicted}"


def write_csv(rows: Sequence[RetrainedRow], path: Path) -> None:
    """Write rows as CSV with a header; numbers in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def _row(data: ReportData, one: Retrained, uniform: Retrained | None) -> RetrainedRow:
    network, cost = one.network, one.network.cost
    std, identity = one.std("val_top1"), network.architecture.id
    difference = between(data, one, (uniform,)) if uniform else None
    # One device for all rows, else they could not be compared.
    clock = data.latencies[0] if data.latencies else None
    timing = clock.measured.get(identity) if clock else None
    return RetrainedRow(
        role=network.role,
        budget=network.budget,
        architecture=identity,
        macs=cost.macs,
        macs_share=data.share(cost.macs),
        params=cost.params,
        activation_bytes=cost.activation_bytes,
        seeds=len(one.runs),
        val_top1_mean_percent=100 * one.mean("val_top1"),
        val_top1_std_points=None if std is None else 100 * std,
        val_loss_mean=one.mean("val_loss"),
        val_loss_std=one.std("val_loss"),
        seconds_mean=one.mean("seconds"),
        difference_to_uniform_points=difference.points if difference else None,
        difference_half_width_points=difference.half_width if difference else None,
        val_top5_mean_percent=100 * one.mean("val_top5") if _has(one, "val_top5") else None,
        val_top1_by_size_percent="; ".join(
            f"{size}: {100 * one.mean(f'val_top1@{size}'):.1f}" for size in _sizes(one)
        ),
        latency_device=clock.name if clock else "",
        latency_median_ms=1e3 * timing.median if timing else None,
        latency_p95_ms=1e3 * timing.p95 if timing and timing.p95 is not None else None,
        latency_predicted_ms=_milliseconds(clock.predicted.get(identity) if clock else None),
        classes_lost="; ".join(
            f"{name} {points:+.1f}" for name, points in classes_lost(data, identity)
        ),
        initialisation="from scratch",
        seed_list=" ".join(str(run.seed) for run in one.runs),
        data_digest=data.digest,
    )


def classes_lost(data: ReportData, identity: str) -> list[tuple[str, float]]:
    """The classes that lost most accuracy against vanilla, with the points; none that gained."""
    vanilla = data.find(VANILLA)
    base = None if vanilla is None else data.by_class.get(vanilla.network.architecture.id)
    own = data.by_class.get(identity)
    if base is None or own is None:
        return []
    lost = 100 * (own - base)
    worst = [int(index) for index in np.argsort(lost, kind="stable")[:SHOWN_CLASSES]]
    return [(data.class_names[index], float(lost[index])) for index in worst if lost[index] < 0]


def _has(one: Retrained, metric: str) -> bool:
    return all(metric in run.metrics for run in one.runs)


def _sizes(one: Retrained) -> list[int]:
    """Sides of the test images at which every training was judged."""
    names = (name for name in one.runs[0].metrics if name.startswith("val_top1@"))
    return sorted(int(name.partition("@")[2]) for name in names if _has(one, name))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
