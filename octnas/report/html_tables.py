"""The page's tables."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from octnas.ranking import Ranking
from octnas.report.data import StageTime
from octnas.report.formats import MINUS
from octnas.report.ranking import ranking_rows


def times_table(times: Mapping[str, StageTime]) -> str:
    """What the stages took, as HTML."""
    columns = (("stage", True), ("hours", False), ("CPU or GPU", True))
    rows = [
        (stage, "not recorded" if one.hours is None else f"{one.hours:.3g}", one.what)
        for stage, one in times.items()
    ]
    return html_table(columns, rows)


def ranking_table(rankings: Mapping[str, Ranking]) -> str:
    """The figures of the ranking check, a column for each source of scores, as HTML."""
    columns = [("", True), *((f"scores of {source}", True) for source in rankings)]
    cells: dict[str, dict[str, str]] = {}
    for source, ranking in rankings.items():
        for name, value, interval in ranking_rows(ranking):
            cell = f"{value} ({interval})" if interval else value
            cells.setdefault(name, {})[source] = cell.replace("-", MINUS)
    return html_table(
        columns, ([name, *(row.get(s, "–") for s in rankings)] for name, row in cells.items())
    )


def html_table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
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
