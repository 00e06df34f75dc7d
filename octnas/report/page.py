"""The report: one HTML file that needs nothing else, neither files nor network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from octnas.ranking import Ranking
from octnas.report.compare import METHOD, headline, hypervolume_words
from octnas.report.data import ReportData
from octnas.report.figures import (
    alpha_figure,
    alpha_rows,
    front_figure,
    retrained_figure,
    training_figure,
)
from octnas.report.formats import plural
from octnas.report.html_tables import alpha_table, ranking_table, retrained_table
from octnas.report.ranking import METHOD as RANKING_METHOD
from octnas.report.ranking import ranking_basis
from octnas.report.ranking_figure import RANKING_CAPTION, ranking_figure
from octnas.report.words import Story, searched_what, story
from octnas.run_directory import write_text
from octnas.verdict import Verdict

PIXELS_PER_SITE = 28  # α of one site has to stay legible; a wider figure scrolls
PIXELS_PER_ROW = 46
ALPHA_MARGIN = 160  # pixels for the names of the sites, upright where they are wide
CSS_CLASSES = {Verdict.BETTER: "better", Verdict.WORSE: "worse"}

FRONT_CAPTION = (
    "Each point is one architecture, scored with the supernet’s weights. The stepped line is the "
    "front: at these MACs, nothing scored was better. Rings mark what was chosen for the budgets "
    "(dashed). Supernet scores rank; they are not the accuracy of a network trained on its own."
)
RETRAINED_CAPTION = (
    "Mean over seeds; bars are one standard deviation. MACs are not time: measure the latency "
    "before choosing."
)
ALPHA_CAPTION = (
    "Share of channels at half resolution by site, first layers left, after rounding to whole "
    "channels. Hovering or tapping shows how many."
)
TRAINING_CAPTION = (
    "Mean over seeds. The supernet’s loss is over whatever subnets each step drew, so only its "
    "course compares with the others."
)


def write_page(data: ReportData, path: Path) -> None:
    """Write the report as one HTML file, whole or not at all."""
    write_text(path, page(data))


def page(data: ReportData) -> str:
    """The report as HTML."""
    parts = (_top(data), _figures(data), _tables(data), _ranking(data.rankings), _facts(data))
    return _page(data.name, (line for part in parts for line in part))


def write_ranking_page(name: str, rankings: Mapping[str, Ranking], path: Path) -> None:
    """Write the ranking check of an experiment as one HTML file of its own."""
    heading = f"<h1>{escape(name)}</h1>"
    write_text(path, _page(f"{name}, ranking", [heading, *_ranking(rankings)]))


def _page(title: str, body: Iterable[str]) -> str:
    return Template(_asset("page.html")).substitute(
        title=escape(f"{title} – octnas"),
        style=_asset("style.css"),
        body="\n".join(body),
        plotly=get_plotlyjs(),
    )


def _top(data: ReportData) -> Iterable[str]:
    yield f"<h1>{escape(data.name)}</h1>"
    for sentence in headline(data):
        yield _paragraph(sentence, "headline")
    yield _paragraph(searched_what(data))
    yield '<div class="budgets">'
    yield from (_card(story(data, budget)) for budget in data.budgets)
    yield "</div>"
    if data.retrained:
        if (areas := hypervolume_words(data)) is not None:
            yield _paragraph(areas)
        yield _paragraph(METHOD, "quiet")
        looks = f"The val images were looked at {plural(data.val_looks, 'time')}"
        yield _paragraph(f"{looks}: once for each training and size of images.", "quiet")
    for sentence in missing(data):
        yield _paragraph(sentence, "missing")


def missing(data: ReportData) -> list[str]:
    """What the report cannot show yet."""
    absent = {
        "No architecture has been scored, so there is no front.": not data.candidates,
        "No network has been retrained yet, so the accuracies, their figure and their table are "
        "missing.": not data.retrained,
        "The supernet’s training was not recorded.": not data.supernet_history,
    }
    return [sentence for sentence, holds in absent.items() if holds]


def _card(found: Story) -> str:
    judged = "".join(
        f'<li class="{CSS_CLASSES.get(verdict, "open")}">'
        f"<strong>{escape(verdict.value.capitalize())}</strong>{_prose(sentence)}</li>"
        for verdict, sentence in found.judged
    )
    return "\n".join(
        [
            f'<section class="budget"><h3>{escape(found.title)}</h3>',
            _paragraph(found.bound, "quiet"),
            *map(_paragraph, found.found),
            f"<ul>{judged}</ul>" if judged else "",
            *(_paragraph(sentence, "quiet") for sentence in found.outlook),
            "</section>",
        ]
    )


def _figures(data: ReportData) -> Iterable[str]:
    yield from _figure("front", "Candidates and front", front_figure(data), FRONT_CAPTION)
    heading = "Retrained networks"
    yield from _figure("retrained", heading, retrained_figure(data), RETRAINED_CAPTION)
    size = f"height: {ALPHA_MARGIN + PIXELS_PER_ROW * len(alpha_rows(data))}px; "
    size += f"min-width: {110 + PIXELS_PER_SITE * len(data.space.sites)}px"
    yield from _figure("alpha", "α by site", alpha_figure(data), ALPHA_CAPTION, size)
    yield from _figure("training", "Training", training_figure(data), TRAINING_CAPTION)


def _figure(
    key: str, heading: str, figure: go.Figure | None, caption: str, size: str = ""
) -> Iterable[str]:
    if figure is None:
        return
    yield f'<h2>{escape(heading)}</h2><figure><div class="scroll" tabindex="0">'
    yield f'<div class="plot" id="{key}" style="{size}"></div></div>'
    yield f"<figcaption>{escape(caption)}</figcaption></figure>"
    # plotly escapes "<" and "/" in its JSON, so that no text can end the script element.
    yield f'<script type="application/json" id="{key}-data">{figure.to_json()}</script>'


def _tables(data: ReportData) -> Iterable[str]:
    if data.retrained:
        yield f"<h2>Results of retraining</h2>{retrained_table(data)}"
    if data.chosen:
        yield f"<h2>α of the chosen architectures</h2>{alpha_table(data)}"


def _ranking(rankings: Mapping[str, Ranking]) -> Iterable[str]:
    if not rankings:
        return
    yield from _figure(
        "ranking", "Does the supernet rank?", ranking_figure(rankings), RANKING_CAPTION
    )
    for source, ranking in rankings.items():
        yield _paragraph(f"Scores of {source}: {ranking_basis(ranking)}")
    yield ranking_table(rankings)
    yield _paragraph(RANKING_METHOD, "quiet")


def _facts(data: ReportData) -> Sequence[str]:
    if not data.facts:
        return []
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in data.facts.items())
    return ["<h2>Facts</h2><dl>", *pairs, "</dl>"]


def _paragraph(text: str, style: str = "") -> str:
    opening = f'<p class="{style}">' if style else "<p>"
    return f"{opening}{_prose(text)}</p>"


def _prose(text: str) -> str:
    """Escaped text in which no line ends between a number and its unit."""
    return escape(re.sub(r"(?<=\d) (?=[%±GMk])|(?<=±) ", "\N{NO-BREAK SPACE}", text))


def _asset(name: str) -> str:
    return files("octnas.report").joinpath(name).read_text(encoding="utf-8")
