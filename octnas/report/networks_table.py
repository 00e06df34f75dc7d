"""The page's table of retrained networks, which its script sorts, filters and selects from.

What the page's script chooses from, as one JSON document.

Where an architecture spends its multiply-adds, by stage of the network.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from math import isfinite
from typing import Any

from octnas.report.data import Latencies, ReportData
from octnas.report.style import (
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
from octnas.report.verdicts import between
from octnas.results.front import Candidate
from octnas.results.networks import FRONT, PLAIN, RANDOM, SEARCHED, WORST, Retrained
from octnas.space.costs import conv_macs, low_channels
from octnas.space.search_space import SearchSpace

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


CLASSIFIER = "classifier"
_STEM = "conv1"


def stage_of(name: str) -> str:
    """The stage of a site or convolution: ``"layer2.0.conv1"`` → ``"layer2"``."""
    stage = name.partition(".")[0]
    return "stem" if stage == _STEM else stage


def macs_by_stage(space: SearchSpace, alphas: Mapping[str, float]) -> dict[str, int]:
    """MACs by stage in the order of the network, the linear layers last.

    Args:
        space: of the architecture.
        alphas: quantized, for every site.
    """
    found: dict[str, float] = {}
    for conv in space.convs:
        stage = stage_of(conv.name)
        alpha_in = 0.0 if conv.site_in is None else alphas[conv.site_in]
        macs = conv_macs(conv, alpha_in, alphas[conv.site_out])
        found[stage] = found.get(stage, 0.0) + macs
    return {stage: round(macs) for stage, macs in found.items()} | {CLASSIFIER: space.other_macs}


def low_by_site(space: SearchSpace, alphas: Mapping[str, float]) -> list[int]:
    """The channels at half resolution of every site, in the order of the sites.

    Args:
        space: of the architecture.
        alphas: quantized, for every site.
    """
    return [
        low_channels(alphas[site.name], site.channels, space.channel_multiple, site.groups)
        for site in space.sites
    ]


SCHEMA = 1
FOUND = (SEARCHED, FRONT)
"""Roles of what the search has found, and val has not chosen."""
NOT_OFFERED = (RANDOM, WORST)
"""Roles of networks that nobody would deploy for what they are."""


def page_document(data: ReportData) -> dict[str, Any]:
    """The sites, the devices, every architecture by id, and the retrained networks."""
    architectures = {one.id: _of_candidate(data, one) for one in data.candidates}
    for one in data.retrained:
        identity = one.network.architecture.id
        architectures[identity] = architectures.get(identity, {}) | _of_retrained(data, one)
    scores = {one.id: one.metrics.get("expected_loss", one.loss) for one in data.candidates}
    return {
        "schema": SCHEMA,
        "run": data.run,
        "sites": [_site(data, index) for index in range(len(data.space.sites))],
        "stages": list(macs_by_stage(data.space, data.space.quantize({}))),
        "vanilla": data.space.vanilla_macs,
        "devices": [device(one) for one in data.latencies],
        "architectures": architectures,
        "networks": [_network(data, one, scores) for one in data.retrained],
        "chosen": {name: one.id for name, one in data.chosen.items()},
    }


def to_script(document: Mapping[str, Any]) -> str:
    """JSON in which no text can end the script element that holds it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def device(one: Latencies) -> dict[str, Any]:
    """Latencies as a JSON object, in seconds."""
    return {
        "name": one.name,
        "device": one.device,
        "backend": one.backend,
        "precision": one.precision,
        "batch": one.batch,
        "threads": one.threads,
        "measured": {name: [time.median, time.p95] for name, time in one.measured.items()},
        "predicted": dict(one.predicted),
    }


def _site(data: ReportData, index: int) -> dict[str, Any]:
    site = data.space.sites[index]
    effect = data.effects.get(site.name)
    return {
        "name": site.name,
        "stage": stage_of(site.name),
        "channels": site.channels,
        "searchable": site.searchable,
        "effect": None if effect is None else [effect.percent, effect.std],
    }


def _of_candidate(data: ReportData, one: Candidate) -> dict[str, Any]:
    return _of_alphas(data, one.alphas) | {
        "macs": one.macs,
        "loss": _finite(one.loss),
        "origin": one.origin,
    }


def _of_retrained(data: ReportData, one: Retrained) -> dict[str, Any]:
    network = one.network
    cost = {"macs": network.cost.macs, "activation": network.cost.activation_bytes}
    if network.role in PLAIN:
        # Another backbone: neither its sites nor its stages are those of the space.
        return cost
    return _of_alphas(data, network.architecture.alphas) | cost


def _of_alphas(data: ReportData, alphas: Mapping[str, float]) -> dict[str, Any]:
    quantized = data.space.quantize(alphas)
    return {
        "activation": data.space.cost(quantized).activation_bytes,
        "low": low_by_site(data.space, quantized),
        "stages": list(macs_by_stage(data.space, quantized).values()),
    }


def _network(data: ReportData, one: Retrained, scores: Mapping[str, float]) -> dict[str, Any]:
    network, std = one.network, one.std("val_top1")
    return {
        "id": network.architecture.id,
        "name": network.name,
        "role": network.role,
        "found": network.role in FOUND,
        "offered": network.role not in NOT_OFFERED,
        "top1": 100 * one.mean("val_top1"),
        "std": None if std is None else 100 * std,
        "seeds": len(one.runs),
        # What decided before val was looked at.
        "score": _finite(scores.get(network.architecture.id)),
        "against": _against(data, one, data.retrained) if network.role in FOUND else {},
    }


def _against(
    data: ReportData, one: Retrained, others: Iterable[Retrained]
) -> dict[str, tuple[str, float, float | None]]:
    """Verdict, points and half of the interval, by the other network's architecture."""
    found = {}
    for other in others:
        identity = other.network.architecture.id
        if identity != one.network.architecture.id:
            difference = between(data, one, (other,))
            found[identity] = (
                difference.verdict.name.lower(),
                difference.points,
                difference.half_width,
            )
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
