"""All files of a report.

The report as Markdown, for a pull request.

The front as files that other programs read: ``front.csv`` and ``front.json``.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from octnas.io.files import write_json, write_text
from octnas.report.data import ReportData
from octnas.report.figures import (
    alpha_figure,
    front_figure,
    hypervolume_figure,
    ranking_figure,
    retrained_figure,
    training_figure,
)
from octnas.report.networks_table import device
from octnas.report.page import write_page
from octnas.report.png import PngError, write_pngs
from octnas.report.style import (
    format_bytes,
    format_macs,
    format_percent,
    format_points,
    format_top1,
)
from octnas.report.tables import RetrainedRow, latency_words, retrained_rows, write_csv
from octnas.report.verdicts import METHOD, headline, hypervolume_words
from octnas.report.words import distrust, looks_words, searched_what, story
from octnas.results.front import Candidate

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
    quantized = data.space.quantize(one.alphas)
    values = (
        one.id,
        one.macs,
        data.share(one.macs),
        data.space.cost(quantized).activation_bytes,
        clock.name if clock else "",
        None if predicted is None else 1e3 * predicted,
        one.loss,
        one.metrics.get("expected_loss"),
        one.metrics.get("rank_top1"),
        one.origin,
        "; ".join(name for name, chosen in data.chosen.items() if chosen.id == one.id),
        100 * trained[0].mean("val_top1") if trained else None,
        quantized,
    )
    return dict(zip(COLUMNS, values, strict=True))


_COLUMNS = ("network", "MACs", "of vanilla", "memory", "latency, ms", "top-1, %", "to uniform")
_CAPTIONS = {
    "front": "Candidates and front (supernet scores)",
    "retrained": "Retrained networks, mean and one standard deviation over seeds",
    "alpha": "α by site",
    "hypervolume": "Hypervolume against evaluations",
    "ranking": "The supernet’s loss beside accuracy from scratch",
    "training": "Training loss",
}


def markdown(data: ReportData, figures: Sequence[str], why_not: str = "") -> str:
    """The report as Markdown.

    Args:
        data: what it says.
        figures: names of the PNG files that stand in ``figures/``.
        why_not: what is said where there are none.
    """
    lines = [f"# {escaped(data.name)}", ""]
    lines += [f"**{escaped(sentence)}**  " for sentence in headline(data)]
    lines += ["", escaped(searched_what(data)), ""]
    for budget in data.budgets:
        found = story(data, budget)
        lines += [f"## {escaped(found.title)}", "", escaped(found.bound) + ".", ""]
        said = (*found.found, *(sentence for _, sentence in found.judged), *found.outlook)
        lines += [*(f"- {escaped(sentence)}" for sentence in said), ""]
    if weak := distrust(data):
        lines += [
            "## What to distrust",
            "",
            *(f"- {_with_commands(sentence)}" for sentence in weak),
            "",
        ]
    if data.retrained:
        lines += ["## Networks", "", *_table(data), ""]
        if data.latencies:
            lines += [f"Latency (median of a batch): {escaped(data.latencies[0].name)}.", ""]
        for sentence in filter(None, (hypervolume_words(data), METHOD, looks_words(data))):
            lines += [escaped(sentence), ""]
    lines += ["", *_figures(figures, why_not)]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    for mark in "\\`*_{}[]#|~$!":
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    # A mention or an address would become a link, and a line break would end a table.
    text = text.replace("@", "@\N{ZERO WIDTH SPACE}")
    # One space at either end stays: beside a command it is wanted.
    return re.sub(r"\s+", " ", text)


def _with_commands(text: str) -> str:
    """The same, but for what stands in backticks."""
    parts = text.split("`")
    return "`".join(part if index % 2 else escaped(part) for index, part in enumerate(parts))


def _figures(figures: Sequence[str], why_not: str) -> list[str]:
    if not figures:
        return [f"No figures: {_with_commands(why_not)}."] if why_not else []
    lines: list[str] = []
    for name in figures:
        lines += [f"![{_CAPTIONS.get(name, name)}](figures/{name}.png)", ""]
    return lines


def _table(data: ReportData) -> list[str]:
    rows = [
        _cells(row, one.network.name)
        for row, one in zip(retrained_rows(data), data.retrained, strict=True)
    ]
    bars = ["---", *["---:"] * (len(_COLUMNS) - 1)]
    return [f"| {' | '.join(row)} |" for row in ([*_COLUMNS], bars, *rows)]


def _cells(row: RetrainedRow, name: str) -> list[str]:
    difference = row.difference_to_uniform_points
    half = row.difference_half_width_points
    interval = "" if half is None else f" ± {half:.2f}"
    return [
        escaped(name),
        format_macs(row.macs),
        format_percent(row.macs_share),
        format_bytes(row.activation_bytes),
        latency_words(row),
        format_top1(row.val_top1_mean_percent, row.val_top1_std_points),
        "–" if difference is None else format_points(difference) + interval,
    ]


PAGE_FILE = "index.html"
TABLE_FILE = "networks.csv"
FRONT_CSV = "front.csv"
FRONT_JSON = "front.json"
MARKDOWN = "report.md"
FIGURES_FOLDER = "figures"
_ASK = "`octnas report RUN --png` draws them"


def write_all(data: ReportData, folder: Path, *, png: bool) -> list[str]:
    """Write the report; lines about what could not be written.

    Args:
        data: what it says.
        folder: where to write.
        png: whether figures are drawn as PNG files, which takes a browser some seconds.
    """
    write_page(data, folder / PAGE_FILE)
    write_front_csv(data, folder / FRONT_CSV)
    write_front_json(data, folder / FRONT_JSON)
    if data.retrained:
        write_csv(retrained_rows(data), folder / TABLE_FILE)
    figures = all_figures(data)
    for name, figure in figures.items():
        # As `plotly.io.read_json` makes figures of it.
        write_text(folder / FIGURES_FOLDER / f"{name}.json", figure.to_json())
    said, drawn, why_not = [], [], _ASK
    if png:
        try:
            drawn = [path.stem for path in write_pngs(figures, folder / FIGURES_FOLDER)]
        except PngError as error:
            why_not = f"PNG figures: {error}"
            said.append(why_not)
    else:
        # Those of an earlier report would show other results.
        for path in (folder / FIGURES_FOLDER).glob("*.png"):
            path.unlink()
    write_text(folder / MARKDOWN, markdown(data, drawn, why_not))
    return said


def all_figures(data: ReportData) -> dict[str, go.Figure]:
    """The figures that there is something to draw in, by name."""
    figures = {
        "front": front_figure(data),
        "retrained": retrained_figure(data),
        "alpha": alpha_figure(data),
        "hypervolume": hypervolume_figure(data),
        "ranking": ranking_figure(data.rankings),
        "training": training_figure(data),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
