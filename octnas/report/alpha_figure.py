"""α of every site of the networks, as a heat map."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from octnas.report.axes import LABEL_LIMIT
from octnas.report.data import ReportData
from octnas.report.formats import format_alpha, plot_text
from octnas.report.hovers import alpha_hover
from octnas.report.plot_style import ALPHA_SCALE, new_figure
from octnas.results import PLAIN, SEARCHED


def alpha_figure(data: ReportData) -> go.Figure | None:
    """Heat map of α: a column for each site, a row for each chosen or retrained architecture."""
    rows = alpha_rows(data)
    if not rows:
        return None
    sites = [site.name for site in data.space.sites]
    realised = [data.space.realise(alphas) for _, alphas in rows]
    figure = new_figure("", "")
    figure.add_heatmap(
        z=[[alphas[site] for site in sites] for alphas in realised],
        text=[[format_alpha(alphas[site]) for site in sites] for alphas in realised],
        texttemplate="%{text}",
        hovertext=[
            [alpha_hover(data, name, site, alphas[site]) for site in sites]
            for (name, _), alphas in zip(rows, realised, strict=True)
        ],
        hoverinfo="text",
        zmin=0,
        zmax=1,
        colorscale=ALPHA_SCALE,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    labels = [_two_lines(name) for name, _ in rows]
    _name_ticks(figure.layout.xaxis, [plot_text(site, LABEL_LIMIT) for site in sites])
    _name_ticks(figure.layout.yaxis, labels)
    figure.update_xaxes(autotickangles=[0, 90])
    figure.update_yaxes(autorange="reversed")
    return figure


def alpha_rows(data: ReportData) -> list[tuple[str, Mapping[str, float]]]:
    """Names and α by site: by budget the chosen architecture, then its baselines; then the rest."""
    octave = [one for one in data.retrained if one.network.role not in PLAIN]
    names = {one.network.name: one.network.architecture.alphas for one in octave}
    rows: dict[str, Mapping[str, float]] = {}
    for budget in data.budgets:
        if chosen := data.chosen.get(budget.name):
            rows[f"{SEARCHED}, {budget.name}"] = chosen.alphas
        for one in octave:
            if one.network.budget == budget.name:
                rows.setdefault(one.network.name, one.network.architecture.alphas)
    return list((rows | {name: names[name] for name in names if name not in rows}).items())


def _two_lines(name: str) -> str:
    role, _, budget = name.partition(", ")
    label = plot_text(role, LABEL_LIMIT)
    return f"{label}<br>{plot_text(budget, LABEL_LIMIT)}" if budget else label


def _name_ticks(axis: object, names: Sequence[str]) -> None:
    """Names at the places 0, 1, …; as numbers, because names cut short may coincide."""
    axis.update(tickmode="array", tickvals=list(range(len(names))), ticktext=names, showgrid=False)  # type: ignore[attr-defined]
