"""The data of the page's scripts, as one JSON document."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from octnas.report.data import Latencies, ReportData
from octnas.report.verdicts import between
from octnas.results.networks import FRONT, PLAIN, RANDOM, SEARCHED, WORST, Retrained
from octnas.space.costs import conv_macs
from octnas.space.search_space import SearchSpace, Site

CLASSIFIER = "classifier"
FOUND = (SEARCHED, FRONT)
"""Roles of networks that the search found, without val images."""
NOT_OFFERED = (RANDOM, WORST)
"""Roles of networks that nobody would deploy."""


def page_document(data: ReportData) -> dict[str, Any]:
    """The sites, the devices, every architecture by id, and the retrained networks."""
    alphas = {one.id: one.alphas for one in (*data.candidates, *data.chosen.values())}
    for one in data.networks:
        # Plain networks have other sites and stages.
        if one.network.role not in PLAIN:
            alphas.setdefault(one.network.architecture.id, one.network.architecture.alphas)
    return {
        "run": data.run,
        "sites": [_site(data, site) for site in data.space.sites],
        "stages": list(macs_by_stage(data.space, data.space.quantize({}))),
        "devices": [device(one) for one in data.latencies],
        "architectures": {
            identity: {"macs": cost.macs}
            | (_parts(data.space, alphas[identity]) if identity in alphas else {})
            for identity, cost in data.costs.items()
        },
        "networks": [_network(data, one) for one in data.retrained],
        "chosen": {name: one.id for name, one in data.chosen.items()},
    }


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


def stage_of(name: str) -> str:
    """The stage of a site or convolution: ``"layer2.0.conv1"`` → ``"layer2"``."""
    stage = name.partition(".")[0]
    return "stem" if stage == "conv1" else stage


def macs_by_stage(space: SearchSpace, alphas: Mapping[str, float]) -> dict[str, int]:
    """MACs by stage in the order of the network, linear layers last, for quantized α."""
    found: dict[str, float] = {}
    for conv in space.convs:
        stage = stage_of(conv.name)
        alpha_in = 0.0 if conv.site_in is None else alphas[conv.site_in]
        macs = conv_macs(conv, alpha_in, alphas[conv.site_out])
        found[stage] = found.get(stage, 0.0) + macs
    return {stage: round(macs) for stage, macs in found.items()} | {CLASSIFIER: space.other_macs}


def _site(data: ReportData, site: Site) -> dict[str, Any]:
    effect = data.effects.get(site.name)
    return {
        "name": site.name,
        "channels": site.channels,
        "searchable": site.searchable,
        "effect": None if effect is None else [effect.percent, effect.std],
    }


def _parts(space: SearchSpace, alphas: Mapping[str, float]) -> dict[str, list[int]]:
    """Channels at half resolution by site, and MACs by stage."""
    quantized = space.quantize(alphas)
    return {
        "low": [round(quantized[site.name] * site.channels) for site in space.sites],
        "stages": list(macs_by_stage(space, quantized).values()),
    }


def _network(data: ReportData, one: Retrained) -> dict[str, Any]:
    network, std, found = one.network, one.std("val_top1"), one.network.role in FOUND
    return {
        "id": network.architecture.id,
        "name": data.name_of(network),
        "role": network.role,
        "found": found,
        "offered": network.role not in NOT_OFFERED,
        "top1": 100 * one.mean("val_top1"),
        "std": None if std is None else 100 * std,
        "seeds": len(one.runs),
        "score": _score(data, network.architecture.id),
        "against": _against(data, one) if found else {},
    }


def _score(data: ReportData, identity: str) -> float | None:
    """The loss by which the search chose, before val was used; None if there is none."""
    losses = (
        one.metrics.get("expected_loss", one.loss) for one in data.candidates if one.id == identity
    )
    return next(filter(isfinite, losses), None)


def _against(data: ReportData, one: Retrained) -> dict[str, tuple[str, float, float | None]]:
    """Verdict, points and half of the interval, by the other network's architecture."""
    found = {}
    for other in data.retrained:
        identity = other.network.architecture.id
        if identity != one.network.architecture.id:
            compared = between(data, one, (other,))
            found[identity] = (compared.verdict.name.lower(), compared.points, compared.half_width)
    return found
