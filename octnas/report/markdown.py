"""The report as Markdown, for a pull request."""

import re
from collections.abc import Sequence

from octnas.report.areas import hypervolume_words
from octnas.report.compare import METHOD, headline
from octnas.report.data import ReportData
from octnas.report.distrust import distrust
from octnas.report.formats import (
    format_bytes,
    format_macs,
    format_percent,
    format_points,
    format_top1,
)
from octnas.report.tables import RetrainedRow, latency_words, retrained_rows
from octnas.report.words import looks_words, searched_what, story

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
