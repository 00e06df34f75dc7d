"""The report: one HTML file that needs nothing else, neither files nor network.

The page's tables.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from octnas.io.files import write_text
from octnas.report.data import ReportData, StageTime
from octnas.report.figures import (
    RANKING_CAPTION,
    front_figure,
    hypervolume_figure,
    ranking_figure,
    retrained_figure,
    training_figure,
)
from octnas.report.networks_table import page_document, retrained_table, to_script
from octnas.report.ranking import METHOD as RANKING_METHOD
from octnas.report.ranking import ranking_basis, ranking_rows
from octnas.report.style import MINUS
from octnas.report.verdicts import METHOD, headline, hypervolume_words
from octnas.report.words import (
    EFFECT_CAPTION,
    FRONT_CAPTION,
    HYPERVOLUME_CAPTION,
    NETWORKS_CAPTION,
    PICK_CAPTION,
    RETRAINED_CAPTION,
    TIMES_CAPTION,
    TRAINING_CAPTION,
    Story,
    distrust,
    looks_words,
    searched_what,
    story,
)
from octnas.results.ranking import Ranking
from octnas.results.verdict import Verdict


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


CSS_CLASSES = {Verdict.BETTER: "better", Verdict.WORSE: "worse"}
SCRIPTS = ("plots.js", "sites.js", "table.js", "pick.js")


def write_page(data: ReportData, path: Path, again: int = 0) -> None:
    """Write the report as one HTML file, whole or not at all; see `page`."""
    write_text(path, page(data, again))


def page(data: ReportData, again: int = 0) -> str:
    """The report as HTML.

    Args:
        data: what it shows.
        again: seconds after which the page reads its own file again, for a run that is still going
            on; 0 for never.
    """
    parts = (
        _top(data),
        _pick(data),
        _front(data),
        _networks(data),
        _search(data),
        _ranking(data.rankings),
        _training(data),
        _facts(data),
    )
    return page_of(data.name, (line for part in parts for line in part), again)


def write_ranking_page(name: str, rankings: Mapping[str, Ranking], path: Path) -> None:
    """Write the ranking check of an experiment as one HTML file of its own."""
    heading = f"<h1>{escape(name)}</h1>"
    write_text(path, page_of(f"{name}, ranking", [heading, *_ranking(rankings)]))


def page_of(title: str, body: Iterable[str], again: int = 0) -> str:
    """A page of the report's looks, with its scripts."""
    refresh = f'<meta http-equiv="refresh" content="{again}">\n'
    return Template(_asset("page.html")).substitute(
        title=escape(f"{title} – octnas"),
        again=refresh if again else "",
        style=_asset("style.css"),
        body="\n".join(body),
        plotly=get_plotlyjs(),
        script="\n".join(_asset(name) for name in SCRIPTS),
    )


def _top(data: ReportData) -> Iterable[str]:
    yield f"<h1>{escape(data.name)}</h1>"
    if data.unfinished:
        stages = "; ".join(f"{stage} {how}" for stage, how in data.unfinished.items())
        yield paragraph(f"Still going on: {stages}.", "going")
    for sentence in headline(data):
        yield paragraph(sentence, "headline")
    yield paragraph(searched_what(data))
    yield '<div class="budgets">'
    yield from (_card(story(data, budget)) for budget in data.budgets)
    yield "</div>"
    if weak := distrust(data):
        items = "".join(f"<li>{_prose(sentence)}</li>" for sentence in weak)
        yield f'<section id="distrust"><h2>What to distrust</h2><ul>{items}</ul></section>'
    if data.retrained:
        if (areas := hypervolume_words(data)) is not None:
            yield paragraph(areas)
        yield paragraph(METHOD, "quiet")
        yield paragraph(looks_words(data), "quiet")
    for sentence in missing(data):
        yield paragraph(sentence, "missing")
    # What the scripts choose from.
    document = to_script(page_document(data))
    yield f'<script type="application/json" id="model">{document}</script>'


def missing(data: ReportData) -> list[str]:
    """What the report cannot show yet."""
    absent = {
        "No architecture has been scored, so there is no front.": not data.candidates,
        "No network has been retrained yet, so the accuracies, their figure and their table are "
        "missing.": not data.retrained,
        "The supernet’s training was not recorded.": not data.supernet_history,
    }
    return [sentence for sentence, holds in absent.items() if holds]


def _pick(data: ReportData) -> Iterable[str]:
    if not data.retrained:
        return
    off = "" if data.latencies else " disabled"
    none = "" if data.latencies else "<option>none was measured</option>"
    selects = "".join(
        f'<label>{label} <select name="{name}"{off}>{none}</select></label>'
        for name, label in (("device", "Device"), ("precision", "Precision"), ("batch", "Batch"))
    )
    yield "<h2>Pick a network</h2>"
    yield paragraph(PICK_CAPTION, "quiet")
    yield (
        f'<form id="pick" class="tools">{selects}<label>Limit on <select name="cost">'
        f'<option value="macs">MACs</option><option value="latency"{off}>latency</option></select>'
        '</label><label>at most <input name="limit" type="number" min="0" step="any"> '
        '<span id="unit"></span></label></form><div id="answer" aria-live="polite"></div>'
    )


def _card(found: Story) -> str:
    judged = "".join(
        f'<li class="{CSS_CLASSES.get(verdict, "open")}">'
        f"<strong>{escape(verdict.value.capitalize())}</strong>{_prose(sentence)}</li>"
        for verdict, sentence in found.judged
    )
    return "\n".join(
        [
            f'<section class="budget"><h3>{escape(found.title)}</h3>',
            paragraph(found.bound, "quiet"),
            *map(paragraph, found.found),
            f"<ul>{judged}</ul>" if judged else "",
            *(paragraph(sentence, "quiet") for sentence in found.outlook),
            "</section>",
        ]
    )


def _front(data: ReportData) -> Iterable[str]:
    retrained, front = retrained_figure(data), front_figure(data)
    if retrained is None and front is None:
        return
    yield '<h2>The front</h2><div class="tools"><label>Over <select id="axis"></select></label>'
    yield "</div>"
    heading = "Retrained networks"
    yield from figure_html("retrained", heading, retrained, RETRAINED_CAPTION, "h3")
    yield from figure_html("front", "Candidates of the search", front, FRONT_CAPTION, "h3")
    yield '<h2>Selected networks</h2><div id="selected"></div>'
    yield paragraph(EFFECT_CAPTION, "quiet")


def _networks(data: ReportData) -> Iterable[str]:
    if data.retrained:
        yield f"<h2>Networks</h2>{retrained_table(data)}{paragraph(NETWORKS_CAPTION, 'quiet')}"


def _search(data: ReportData) -> Iterable[str]:
    heading = "Hypervolume against evaluations"
    yield from figure_html("hypervolume", heading, hypervolume_figure(data), HYPERVOLUME_CAPTION)


def _training(data: ReportData) -> Iterable[str]:
    yield from figure_html("training", "Training", training_figure(data), TRAINING_CAPTION)
    if data.times:
        yield f"<h2>Hours of computing</h2>{times_table(data.times)}"
        yield paragraph(TIMES_CAPTION, "quiet")


def figure_html(
    key: str, heading: str, figure: go.Figure | None, caption: str, level: str = "h2"
) -> Iterable[str]:
    """A figure with its heading and caption, which the page's script draws; nothing for none."""
    if figure is None:
        return
    yield f"<{level}>{escape(heading)}</{level}><figure>"
    yield f'<div class="plot" id="{key}"></div>'
    yield f"<figcaption>{escape(caption)}</figcaption></figure>"
    # plotly escapes "<" and "/" in its JSON, so that no text can end the script element.
    yield f'<script type="application/json" id="{key}-data">{figure.to_json()}</script>'


def _ranking(rankings: Mapping[str, Ranking]) -> Iterable[str]:
    if not rankings:
        return
    yield from figure_html(
        "ranking", "Does the supernet rank?", ranking_figure(rankings), RANKING_CAPTION
    )
    for source, ranking in rankings.items():
        yield paragraph(f"Scores of {source}: {ranking_basis(ranking)}")
    yield ranking_table(rankings)
    yield paragraph(RANKING_METHOD, "quiet")


def _facts(data: ReportData) -> Iterable[str]:
    if data.links:
        links = (f"<dt>{escape(name)}</dt><dd>{_link(to)}</dd>" for name, to in data.links.items())
        yield f"<h2>More of this run</h2><dl>{''.join(links)}</dl>"
    if data.facts:
        pairs = (f"<dt>{escape(n)}</dt><dd>{escape(fact)}</dd>" for n, fact in data.facts.items())
        yield f"<h2>Facts</h2><dl>{''.join(pairs)}</dl>"


def _link(to: str) -> str:
    """An address as a link, a command as one."""
    if re.match(r"https?://", to):
        return f'<a href="{escape(to)}" rel="noreferrer">{escape(to)}</a>'
    return f'<code class="command">{escape(to)}</code>'


def paragraph(text: str, style: str = "") -> str:
    """Text as an HTML paragraph."""
    opening = f'<p class="{style}">' if style else "<p>"
    return f"{opening}{_prose(text)}</p>"


def _prose(text: str) -> str:
    """Escaped text in which no line ends between a number and its unit; commands in backticks."""
    text = escape(re.sub(r"(?<=\d) (?=[%±GMk])|(?<=±) ", "\N{NO-BREAK SPACE}", text))
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def _asset(name: str) -> str:
    return files("octnas.report").joinpath("assets", name).read_text(encoding="utf-8")
