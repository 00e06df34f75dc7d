"""What the page's script chooses from, as one JSON document."""

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from octnas.front import Candidate
from octnas.report.compare import between
from octnas.report.data import ReportData
from octnas.report.latencies import Latencies
from octnas.report.stages import low_by_site, macs_by_stage, stage_of
from octnas.results import FRONT, PLAIN, RANDOM, SEARCHED, WORST, Retrained

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
        "stages": list(macs_by_stage(data.space, data.space.realise({}))),
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
    realised = data.space.realise(alphas)
    return {
        "activation": data.space.cost(realised).activation_bytes,
        "low": low_by_site(data.space, realised),
        "stages": list(macs_by_stage(data.space, realised).values()),
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
