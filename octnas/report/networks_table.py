"""The page's table of retrained networks, which its script sorts, filters and selects from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from octnas.report.data import ReportData
from octnas.report.formats import (
    MINUS,
    format_bytes,
    format_count,
    format_loss,
    format_macs,
    format_percent,
    format_points,
    format_seconds,
    format_top1,
)
from octnas.report.tables import (
    NOT_MEASURED,
    RetrainedRow,
    latency_ms,
    latency_words,
    retrained_rows,
)

_NOT_COMPARED = "–"


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        label: its heading.
        text: what a cell says.
        value: by which rows are sorted; None where there is nothing, which comes last.
        latency: what of a device's latency the cell shows; empty for any other column.
        style: ``"more"`` for what a phone shows of selected networks only; ``"wide"`` for text.
    """

    label: str
    text: Callable[[RetrainedRow], str]
    value: Callable[[RetrainedRow], float | str | None]
    latency: str = ""
    style: str = "more"


def _difference(row: RetrainedRow) -> str:
    if row.difference_to_uniform_points is None:
        return _NOT_COMPARED
    half = row.difference_half_width_points
    interval = "" if half is None else f" ± {half:.2f}"
    return format_points(row.difference_to_uniform_points) + interval


def _or_not(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _name(row: RetrainedRow) -> str:
    return f"{row.role}, {row.budget}" if row.budget else row.role


COLUMNS = (
    _Column("network", _name, _name, style=""),
    _Column(
        "top-1, %",
        lambda row: format_top1(row.val_top1_mean_percent, row.val_top1_std_points),
        lambda row: row.val_top1_mean_percent,
        style="",
    ),
    _Column(
        "to uniform, points",
        _difference,
        lambda row: row.difference_to_uniform_points,
        style="",
    ),
    _Column("MACs", lambda row: format_macs(row.macs), lambda row: row.macs, style=""),
    _Column("of vanilla", lambda row: format_percent(row.macs_share), lambda row: row.macs_share),
    _Column("parameters", lambda row: format_count(row.params), lambda row: row.params),
    _Column(
        "activation memory",
        lambda row: format_bytes(row.activation_bytes),
        lambda row: row.activation_bytes,
    ),
    _Column("latency, median", latency_words, latency_ms, "median", style=""),
    _Column(
        "latency, p95",
        lambda row: _or_not(row.latency_p95_ms, ".3f"),
        lambda row: row.latency_p95_ms,
        "p95",
    ),
    _Column(
        "top-5, %",
        lambda row: _or_not(row.val_top5_mean_percent, ".1f"),
        lambda row: row.val_top5_mean_percent,
    ),
    _Column(
        "top-1 by test size",
        lambda row: row.val_top1_by_size_percent or NOT_MEASURED,
        lambda row: row.val_top1_by_size_percent,
    ),
    _Column(
        "loss",
        lambda row: format_loss(row.val_loss_mean, row.val_loss_std),
        lambda row: row.val_loss_mean,
    ),
    _Column(
        "classes that lost most",
        # The points, and not a hyphen in a name.
        lambda row: re.sub(r" -(?=[\d.]+(;|$))", f" {MINUS}", row.classes_lost) or _NOT_COMPARED,
        lambda row: row.classes_lost,
        style="more wide",
    ),
    _Column(
        "time per seed", lambda row: format_seconds(row.seconds_mean), lambda row: row.seconds_mean
    ),
    _Column(
        "initialisation",
        lambda row: row.initialisation,
        lambda row: row.initialisation,
    ),
    _Column("seeds", lambda row: row.seed_list, lambda row: row.seed_list),
    _Column("data digest", lambda row: row.data_digest or "unknown", lambda row: row.data_digest),
    _Column("architecture", lambda row: row.architecture, lambda row: row.architecture),
)


def retrained_table(data: ReportData) -> str:
    """The tools and the table of retrained networks as HTML."""
    rows = retrained_rows(data)
    device = next((row.latency_device for row in rows if row.latency_device), "")
    about = f"Latency in ms of a batch: {device}." if device else "Latency was not measured."
    named = zip(rows, (one.network.name for one in data.retrained), strict=True)
    body = "".join(_row(row, name) for row, name in named)
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(column.label)}</button></th>'
        for column in COLUMNS
    )
    return (
        '<div class="tools"><label>Filter <input type="search" id="filter" '
        'placeholder="searched 0.5"></label>'
        '<label>Sort by <select id="sort"><option value="">as planned</option></select></label>'
        '<label><input type="checkbox" id="descending"> descending</label>'
        f'<span class="quiet" id="shown">{len(rows)} of {len(rows)} networks</span></div>'
        f'<p class="quiet" id="table-device">{escape(about)}</p>'
        f'<div class="scroll" tabindex="0"><table class="cards" id="networks"><thead><tr>{heads}'
        f"</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _row(row: RetrainedRow, name: str) -> str:
    _, *rest = COLUMNS
    button = f'<button type="button" aria-pressed="false">{escape(name)}</button>'
    cells = "".join(_cell(column, row) for column in rest)
    return (
        f'<tr data-id="{escape(row.architecture)}"><th scope="row"{_sorted(name)}>{button}</th>'
        f"{cells}</tr>\n"
    )


def _cell(column: _Column, row: RetrainedRow) -> str:
    latency = f' data-latency="{column.latency}"' if column.latency else ""
    label = f' data-label="{escape(column.label)}"'
    style = f' class="{column.style}"' if column.style else ""
    return f"<td{style}{label}{latency}{_sorted(column.value(row))}>{escape(column.text(row))}</td>"


def _sorted(value: float | str | None) -> str:
    """What the script sorts by."""
    kind = "text" if isinstance(value, str) else "number"
    text = "" if value is None else str(value)
    return f' data-kind="{kind}" data-value="{escape(text)}"'
