"""The page's tables."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from octnas.costs import low_channels
from octnas.ranking import Ranking
from octnas.report.data import ReportData
from octnas.report.formats import (
    MINUS,
    format_alpha,
    format_bytes,
    format_count,
    format_loss,
    format_macs,
    format_percent,
    format_points,
    format_seconds,
    format_top1,
)
from octnas.report.ranking import ranking_rows
from octnas.report.tables import RetrainedRow, retrained_rows

# Of the retrained table's columns, what they are called and whether they hold text.
RETRAINED_COLUMNS = (
    ("network", True),
    ("top-1, %", False),
    ("to\N{NO-BREAK SPACE}uniform, points", False),
    ("loss", False),
    ("MACs", False),
    ("of vanilla", False),
    ("parameters", False),
    ("activations", False),
    ("seeds", False),
    ("time per seed", False),
    ("architecture", True),
)


def retrained_table(data: ReportData) -> str:
    """The table of retrained networks as HTML."""
    rows = retrained_rows(data.retrained, data.space.vanilla_macs)
    return _table(RETRAINED_COLUMNS, (_retrained_cells(row) for row in rows))


def alpha_table(data: ReportData) -> str:
    """α and low channels by site of each chosen architecture, as HTML."""
    columns = [("site", True), ("channels", False), *((name, False) for name in data.chosen)]
    realised = [data.space.realise(candidate.alphas) for candidate in data.chosen.values()]
    rows: list[list[str]] = []
    for site in data.space.sites:
        cells = [site.name, str(site.channels)]
        for alphas in realised:
            alpha = alphas[site.name]
            low = low_channels(alpha, site.channels, data.space.channel_multiple, site.groups)
            cells.append(f"{format_alpha(alpha)} ({low} low)")
        rows.append(cells)
    return _table(columns, rows)


def ranking_table(rankings: Mapping[str, Ranking]) -> str:
    """The figures of the ranking check, a column for each source of scores, as HTML."""
    columns = [("", True), *((f"scores of {source}", True) for source in rankings)]
    cells: dict[str, dict[str, str]] = {}
    for source, ranking in rankings.items():
        for name, value, interval in ranking_rows(ranking):
            cell = f"{value} ({interval})" if interval else value
            cells.setdefault(name, {})[source] = cell.replace("-", MINUS)
    return _table(
        columns, ([name, *(row.get(s, "–") for s in rankings)] for name, row in cells.items())
    )


def _retrained_cells(row: RetrainedRow) -> Sequence[str]:
    difference = row.difference_to_uniform_points
    return (
        f"{row.role}, {row.budget}" if row.budget else row.role,
        format_top1(row.val_top1_mean_percent, row.val_top1_std_points),
        "–" if difference is None else format_points(difference),
        format_loss(row.val_loss_mean, row.val_loss_std),
        format_macs(row.macs),
        format_percent(row.macs_share),
        format_count(row.params),
        format_bytes(row.activation_bytes),
        str(row.seeds),
        format_seconds(row.seconds_mean),
        row.architecture,
    )


def _table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column heads the rows; it scrolls where it is too wide."""
    classes = [' class="text"' if text else "" for _, text in columns]
    head = "".join(
        f'<th scope="col"{style}>{escape(name)}</th>'
        for (name, _), style in zip(columns, classes, strict=True)
    )
    body = "".join(f"<tr>{_row(cells, classes)}</tr>\n" for cells in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], classes: Sequence[str]) -> str:
    first, *rest = ((escape(cell), style) for cell, style in zip(cells, classes, strict=True))
    return f'<th scope="row"{first[1]}>{first[0]}</th>' + "".join(
        f"<td{style}>{cell}</td>" for cell, style in rest
    )
