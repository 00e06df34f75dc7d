"""All files of a report: the page, the front as CSV and JSON, a summary in Markdown, figures."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from octnas.io.files import write_json, write_text
from octnas.report.data import ReportData
from octnas.report.document import device
from octnas.report.figures import all_figures
from octnas.report.page import write_page
from octnas.report.png import PngError, write_pngs
from octnas.report.tables import SHORT, retrained_rows, write_rows
from octnas.report.words import context
from octnas.results.front import Candidate

SCHEMA = 1
PAGE_FILE = "index.html"
TABLE_FILE = "networks.csv"
FRONT_CSV = "front.csv"
FRONT_JSON = "front.json"
MARKDOWN = "report.md"
FIGURES_FOLDER = "figures"
FILES = (PAGE_FILE, TABLE_FILE, FRONT_CSV, FRONT_JSON, MARKDOWN, FIGURES_FOLDER)
_CAPTIONS = {
    "front": "Candidates and front, by score",
    "retrained": "Retrained networks, mean and one standard deviation over seeds",
    "alpha": "α by site",
    "hypervolume": "Hypervolume against evaluations",
    "ranking": "Scores against accuracy of trained networks",
    "training": "Training loss",
}


def write_all(data: ReportData, folder: Path, *, png: bool) -> list[str]:
    """Write the report; returns messages about what could not be written."""
    write_page(data, folder / PAGE_FILE)
    front = [_front_row(data, one) for one in data.front.candidates]
    write_json(folder / FRONT_JSON, _front_document(data, front))
    for name, rows in (
        (FRONT_CSV, [{**row, "alphas": json.dumps(row["alphas"])} for row in front]),
        (TABLE_FILE, retrained_rows(data)),
    ):
        if rows:
            write_rows(folder / name, rows)
    figures, pictures = all_figures(data), folder / FIGURES_FOLDER
    for name, figure in figures.items():
        # `plotly.io.read_json` reads them.
        write_text(pictures / f"{name}.json", figure.to_json())
    said, drawn, why_not = [], [], "`octnas report RUN --png` draws them"
    if png:
        try:
            drawn = [path.stem for path in write_pngs(figures, pictures)]
        except PngError as error:
            why_not = f"PNG figures: {error}"
            said.append(why_not)
    else:
        # Those of an earlier report would show other results.
        for path in pictures.glob("*.png"):
            path.unlink()
    write_text(folder / MARKDOWN, markdown(data, drawn, why_not))
    return said


def _front_document(data: ReportData, front: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The front, the retrained networks with their architectures, and what they depend on."""
    networks = zip(retrained_rows(data), data.networks, strict=True)
    return {
        "schema": SCHEMA,
        "name": data.name,
        "data_digest": data.digest,
        "recipe_digest": data.recipe,
        "vanilla_macs": data.space.vanilla_macs,
        "budgets": [asdict(budget) for budget in data.budgets],
        "latencies": [device(one) for one in data.latencies],
        "front": front,
        "networks": [
            {**row, "definition": one.network.architecture.to_dict()} for row, one in networks
        ],
        "unfinished": dict(data.unfinished),
    }


def _front_row(data: ReportData, one: Candidate) -> dict[str, Any]:
    clock = next((c for c in data.latencies if c.own), None) or next(
        (c for c in data.latencies if c.predicted), None
    )
    predicted = clock.predicted.get(one.id) if clock else None
    trained = next((r for r in data.retrained if r.network.architecture.id == one.id), None)
    return {
        "architecture": one.id,
        "macs": one.macs,
        "macs_share": data.share(one.macs),
        "activation_bytes": data.costs[one.id].activation_bytes,
        "latency_device": clock.name if clock else "",
        "latency_predicted_ms": None if predicted is None else 1e3 * predicted,
        "loss": one.loss,
        "expected_loss": one.metrics.get("expected_loss"),
        "rank_top1": one.metrics.get("rank_top1"),
        "origin": one.origin,
        "chosen_for": "; ".join(name for name, c in data.chosen.items() if c.id == one.id),
        "val_top1_mean_percent": 100 * trained.mean("val_top1") if trained else None,
        "alphas": data.space.quantize(one.alphas),
    }


def markdown(data: ReportData, figures: Sequence[str], why_not: str = "") -> str:
    """The report as Markdown, for a pull request.

    ``figures`` are names of the PNG files in ``figures/``; ``why_not`` says why there are none.
    """
    text = _ENVIRONMENT.get_template("report.md").render(
        columns=SHORT, figures=figures, captions=_CAPTIONS, why_not=why_not, **context(data)
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escaped(value: object) -> str:
    """Text that Markdown shows literally, in a table too."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    for mark in "\\`*_{}[]#|~$!":
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    # A mention or an address would become a link, and a line break would end a table.
    return re.sub(r"\s+", " ", text.replace("@", "@\N{ZERO WIDTH SPACE}"))


def _commands(text: str) -> Markup:
    """The same, except for commands in backticks."""
    parts = text.split("`")
    literal = (part if index % 2 else escaped(part) for index, part in enumerate(parts))
    return Markup("`".join(literal))  # noqa: S704


_ENVIRONMENT = Environment(  # noqa: S701, as `escaped` passes every value
    loader=PackageLoader("octnas.report"),
    finalize=escaped,
    trim_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters["commands"] = _commands
