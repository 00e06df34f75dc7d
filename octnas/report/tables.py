"""The tables of retrained networks: rows, CSV, and the columns that people read."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from octnas.io.files import write_text
from octnas.report.data import ReportData
from octnas.report.style import (
    MINUS,
    NOT_COMPARED,
    format_bytes,
    format_count,
    format_loss,
    format_percent,
    format_points,
    format_seconds,
    format_top1,
)
from octnas.report.verdicts import between
from octnas.results.networks import (
    NARROWER,
    ORIGINAL,
    SHALLOWER,
    UNIFORM,
    VANILLA,
    Retrained,
)

NOT_MEASURED = "not measured"
SHOWN_CLASSES = 3  # those that lost most


Row = Mapping[str, Any]
"""A retrained network by the columns of ``networks.csv``, see `retrained_rows`."""


def _measured(value: float | str | None, form: str = "") -> str:
    return NOT_MEASURED if value in (None, "") else format(value, form)


def _latency(median: float | None, predicted: float | None) -> str:
    if median is None and predicted is not None:
        return f"{predicted:.3f} predicted"
    return _measured(median, ".3f")


def _lost(classes: str) -> str:
    # The sign of the points, not a hyphen in a name.
    return re.sub(r" -(?=[\d.]+(;|$))", f" {MINUS}", classes) or NOT_COMPARED


def _time(seconds: float | None) -> str:
    return NOT_COMPARED if seconds is None else format_seconds(seconds)


@dataclass(frozen=True)
class Column:
    """A column as people read it.

    Attributes:
        label: its heading.
        fields: of the row, which the text is made of; the table is sorted by the first.
        form: makes the text.
        style: ``"more"`` for what phones show of selected networks only; ``"wide"`` for prose.
        latency: which latency the cell shows, on the page for any device; else empty.
    """

    label: str
    fields: tuple[str, ...]
    form: Callable[..., str] = str
    style: str = "more"
    latency: str = ""

    def text(self, row: Row) -> str:
        """The text of a cell."""
        return self.form(*(row[name] for name in self.fields))


_LATENCY = ("latency_median_ms", "latency_predicted_ms")
_TOP1 = ("val_top1_mean_percent", "val_top1_std_points")
_DIFFERENCE = ("difference_to_uniform_points", "difference_half_width_points")
SHORT = (
    Column("network", ("name",), style=""),
    Column("top-1, %", _TOP1, format_top1, style=""),
    Column("to uniform, points", _DIFFERENCE, format_points, style=""),
    Column("MACs", ("macs",), format_count, style=""),
    Column("of vanilla", ("macs_share",), format_percent),
    Column("activation memory", ("activation_bytes",), format_bytes),
    Column("latency, median", _LATENCY, _latency, style="", latency="median"),
)
"""The columns of ``report.md``."""
COLUMNS = (
    *SHORT[:-2],
    Column("parameters", ("params",), format_count),
    *SHORT[-2:],
    Column("latency, p95", ("latency_p95_ms",), partial(_measured, form=".3f"), latency="p95"),
    Column("top-5, %", ("val_top5_mean_percent",), partial(_measured, form=".1f")),
    Column("top-1 by test size", ("val_top1_by_size_percent",), _measured),
    Column("loss", ("val_loss_mean", "val_loss_std"), format_loss),
    Column("classes that lost most", ("classes_lost",), _lost, style="more wide"),
    Column("time per seed", ("seconds_mean",), _time),
    Column("initialisation", ("initialisation",)),
    Column("seeds", ("seed_list",)),
    Column("data digest", ("data_digest",), lambda digest: digest or "unknown"),
    Column("architecture", ("architecture",)),
)
"""The columns of the page."""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, at least one, as CSV; numbers in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def retrained_rows(data: ReportData) -> list[Row]:
    """One row for each network, in the order of the data; the original, if any, is first.

    All latencies are of one device, so that rows can be compared.
    """
    return [_row(data, one) for one in data.networks]


def _row(data: ReportData, one: Retrained) -> Row:
    network, cost, identity = one.network, one.network.cost, one.network.architecture.id
    uniform = data.find(UNIFORM, network.budget)
    compared = uniform is not None and network.role not in (UNIFORM, VANILLA)
    difference = between(data, one, (uniform,)) if uniform and compared else None
    clock = data.latencies[0] if data.latencies else None
    timing = clock.measured.get(identity) if clock else None
    predicted = clock.predicted.get(identity) if clock else None
    return {
        "role": network.role,
        "budget": network.budget,
        "architecture": identity,
        "macs": cost.macs,
        "macs_share": data.share(cost.macs),  # of vanilla, 0 to 1
        "params": cost.params,
        "activation_bytes": cost.activation_bytes,
        "seeds": len(one.runs),
        "val_top1_mean_percent": 100 * one.mean("val_top1"),
        "val_top1_std_points": _times(100, one.std("val_top1")),  # None with one seed
        "val_loss_mean": one.mean("val_loss"),
        "val_loss_std": one.std("val_loss"),
        # Of one training; None for the original.
        "seconds_mean": one.mean("seconds") if _has(one, "seconds") else None,
        "difference_to_uniform_points": difference and difference.points,
        "difference_half_width_points": difference and difference.half_width,
        "val_top5_mean_percent": 100 * one.mean("val_top5") if _has(one, "val_top5") else None,
        # By side of the test images: "32: 71.2; 48: 73.0".
        "val_top1_by_size_percent": "; ".join(
            f"{size}: {100 * one.mean(f'val_top1@{size}'):.1f}" for size in _sizes(one)
        ),
        "latency_device": clock.name if clock else "",
        "latency_median_ms": _times(1e3, timing.median if timing else None),
        "latency_p95_ms": _times(1e3, timing.p95 if timing else None),
        "latency_predicted_ms": _times(1e3, predicted),
        # Against vanilla, in points.
        "classes_lost": "; ".join(
            f"{name} {points:+.1f}" for name, points in _classes_lost(data, identity)
        ),
        "initialisation": _initialisation(data, network.role),
        "seed_list": " ".join(str(run.seed) for run in one.runs),
        "data_digest": data.digest,
        "name": data.name_of(network),
    }


def _initialisation(data: ReportData, role: str) -> str:
    if role == ORIGINAL:
        return "as it came"
    # Other widths and depths cannot take its weights.
    return f"from {'scratch' if role in (NARROWER, SHALLOWER) else data.start}"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _classes_lost(data: ReportData, identity: str) -> list[tuple[str, float]]:
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
    """Sides of the test images at which every training was evaluated."""
    names = (name for name in one.runs[0].metrics if name.startswith("val_top1@"))
    return sorted(int(name.partition("@")[2]) for name in names if _has(one, name))
