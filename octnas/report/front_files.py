"""The front as files that other programs read: ``front.csv`` and ``front.json``."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octnas.files import write_json, write_text
from octnas.front import Candidate
from octnas.report.data import ReportData
from octnas.report.document import device
from octnas.report.tables import retrained_rows

SCHEMA = 1
COLUMNS = (
    "architecture",
    "macs",
    "macs_share",
    "activation_bytes",
    "latency_device",
    "latency_predicted_ms",
    "loss",
    "expected_loss",
    "rank_top1",
    "origin",
    "chosen_for",
    "val_top1_mean_percent",
    "alphas",
)


def write_front_csv(data: ReportData, path: Path) -> None:
    """Write a row for each candidate of the front; None as an empty field, α by site as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in data.front.candidates:
        row = _front_row(data, one)
        writer.writerow(row | {"alphas": json.dumps(row["alphas"])})
    write_text(path, text.getvalue())


def write_front_json(data: ReportData, path: Path) -> None:
    """Write the front, the retrained networks with their architectures, and what they rest on."""
    networks = [
        {**asdict(row), "name": one.network.name, "definition": one.network.architecture.to_dict()}
        for row, one in zip(retrained_rows(data), data.retrained, strict=True)
    ]
    document = {
        "schema": SCHEMA,
        "name": data.name,
        "data_digest": data.digest,
        "recipe_digest": data.recipe,
        "vanilla_macs": data.space.vanilla_macs,
        "budgets": [asdict(budget) for budget in data.budgets],
        "latencies": [device(one) for one in data.latencies],
        "front": [_front_row(data, one) for one in data.front.candidates],
        "networks": networks,
        "unfinished": dict(data.unfinished),
    }
    write_json(path, document)


def _front_row(data: ReportData, one: Candidate) -> dict[str, Any]:
    clock = next((c for c in data.latencies if c.own), None) or next(
        (c for c in data.latencies if c.predicted), None
    )
    predicted = clock.predicted.get(one.id) if clock else None
    trained = [r for r in data.retrained if r.network.architecture.id == one.id]
    realised = data.space.realise(one.alphas)
    values = (
        one.id,
        one.macs,
        data.share(one.macs),
        data.space.cost(realised).activation_bytes,
        clock.name if clock else "",
        None if predicted is None else 1e3 * predicted,
        one.loss,
        one.metrics.get("expected_loss"),
        one.metrics.get("rank_top1"),
        one.origin,
        "; ".join(name for name, chosen in data.chosen.items() if chosen.id == one.id),
        100 * trained[0].mean("val_top1") if trained else None,
        realised,
    )
    return dict(zip(COLUMNS, values, strict=True))
