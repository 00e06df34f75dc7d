"""The HTML pages: each is one file that needs nothing else, neither files nor network.

Templates escape every value. Text passes the filter ``prose``; data for scripts is JSON in which
nothing can end the script element.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from octnas.io.files import write_text
from octnas.report.data import ReportData
from octnas.report.document import page_document
from octnas.report.figures import all_figures, ranking_figure
from octnas.report.ranking import ranking_basis, ranking_table
from octnas.report.tables import COLUMNS
from octnas.report.words import context
from octnas.results.ranking import Ranking


def write_page(data: ReportData, path: Path, again: int = 0) -> None:
    """Write the report as one HTML file, whole or not at all; see `page`."""
    write_text(path, page(data, again))


def page(data: ReportData, again: int = 0) -> str:
    """The report as HTML, which reloads itself every ``again`` seconds; 0 for never."""
    return render(
        "report.html",
        title=data.name,
        again=again,
        document=page_document(data),
        figures=all_figures(data),
        columns=COLUMNS,
        **_ranking(data.rankings),
        **context(data),
    )


def write_ranking_page(name: str, rankings: Mapping[str, Ranking], path: Path) -> None:
    """Write the ranking check of an experiment as an HTML file of its own."""
    figure = ranking_figure(rankings)
    figures = {} if figure is None else {"ranking": figure}
    title = f"{name}, ranking"
    html = render("ranking.html", title=title, name=name, figures=figures, **_ranking(rankings))
    write_text(path, html)


def _ranking(rankings: Mapping[str, Ranking]) -> dict[str, Any]:
    return {
        "ranking_table": ranking_table(rankings),
        "ranking_bases": {source: ranking_basis(one) for source, one in rankings.items()},
    }


def render(template: str, **values: Any) -> str:
    """A page from a template of the folder ``templates``."""
    return _ENVIRONMENT.get_template(template).render(plotly=Markup(get_plotlyjs()), **values)  # noqa: S704


def _asset(name: str) -> Markup:
    folder = files("octnas.report").joinpath("assets")
    return Markup(folder.joinpath(name).read_text(encoding="utf-8"))  # noqa: S704


def _prose(text: str) -> Markup:
    """Text in which no line breaks between a number and its unit; backticks mark commands."""
    text = re.sub(r"(?<=\d) (?=[%±GMk])|(?<=±) ", "\N{NO-BREAK SPACE}", text)
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(text)))
    return Markup(text)  # noqa: S704


_ENVIRONMENT = Environment(
    loader=PackageLoader("octnas.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.globals["asset"] = _asset
_ENVIRONMENT.filters["prose"] = _prose
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
