"""The report's figures; each is None where there is nothing to draw."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go

from octnas.costs import Budget
from octnas.front import Candidate
from octnas.report.data import ReportData
from octnas.report.formats import format_alpha, plot_text
from octnas.report.hovers import alpha_hover, candidate_hover, loss_hover, retrained_hover
from octnas.report.plot_style import (
    ALPHA_SCALE,
    CLEAR,
    DASHES,
    FAINT,
    NEUTRAL,
    ROLE_COLOURS,
    ROLE_SYMBOLS,
    TOP,
    new_figure,
)
from octnas.results import PLAIN, ROLES, SEARCHED, UNIFORM, Retrained

LOSS_TICKS = [step * 10.0**power for power in range(-5, 3) for step in (1, 2, 5)]
LABEL_LIMIT = 22  # characters of a name beside a plot
LABEL_HEIGHT = 18  # pixels of a line of text above a plot


def front_figure(data: ReportData) -> go.Figure | None:
    """Supernet candidates: MACs against the loss on the rank part, with front and budgets."""
    if not data.candidates:
        return None
    top = TOP + LABEL_HEIGHT * len(data.budgets)
    figure = new_figure("MACs", "loss on the rank part (supernet)", top=top)
    plain = [one for one in data.candidates if one.origin != UNIFORM]
    uniform = [one for one in data.candidates if one.origin == UNIFORM]
    small = {"color": FAINT, "size": 6}
    _add_candidates(figure, data, plain, "candidate", mode="markers", marker=small)
    # Between two candidates of the front the cheaper one is what the MACs buy: hence the steps.
    steps = {"color": ROLE_COLOURS[SEARCHED], "width": 1.5, "shape": "hv"}
    dots = {"color": ROLE_COLOURS[SEARCHED], "size": 5}
    front = data.front.candidates
    _add_candidates(figure, data, front, "front", mode="lines+markers", line=steps, marker=dots)
    diamond = {"color": ROLE_COLOURS[UNIFORM], "size": 10, "symbol": ROLE_SYMBOLS[UNIFORM]}
    _add_candidates(figure, data, uniform, "uniform α", mode="markers", marker=diamond)
    ring = {"color": ROLE_COLOURS[SEARCHED], "width": 2.5}
    star = {"color": CLEAR, "size": 17, "symbol": "circle", "line": ring}
    chosen = list(data.chosen.values())
    _add_candidates(figure, data, chosen, "chosen", mode="markers", marker=star)
    _add_budgets(figure, data.budgets, [one.macs for one in data.candidates])
    return figure


def retrained_figure(data: ReportData) -> go.Figure | None:
    """Retrained networks: MACs against mean top-1 on the val part, with std over seeds."""
    if not data.retrained:
        return None
    figure = new_figure("MACs", "top-1 on the val part, %")
    for role in _roles(data.retrained):
        networks = [one for one in data.retrained if one.network.role == role]
        networks.sort(key=lambda one: one.network.cost.macs)
        colour = ROLE_COLOURS.get(role, NEUTRAL)
        figure.add_scatter(
            x=[one.network.cost.macs for one in networks],
            y=[100 * one.mean("val_top1") for one in networks],
            error_y={
                "array": [100 * (one.std("val_top1") or 0.0) for one in networks],
                "width": 5,
                "thickness": 1.5,
            },
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"color": colour, "size": 11, "symbol": ROLE_SYMBOLS.get(role, "circle")},
            name=plot_text(role),
            hovertext=[retrained_hover(data, one) for one in networks],
            hoverinfo="text",
        )
    return figure


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


def training_figure(data: ReportData) -> go.Figure | None:
    """Training loss over epochs: of the supernet, and of retrained networks as mean over seeds."""
    figure = new_figure("epoch", "training loss")
    # On a linear axis the ends of training would all look alike.
    figure.update_yaxes(
        type="log", tickvals=LOSS_TICKS, ticktext=[f"{tick:g}" for tick in LOSS_TICKS]
    )
    if data.supernet_history:
        _add_losses(figure, "supernet", [data.supernet_history], {"color": NEUTRAL, "width": 3})
    budgets = list(dict.fromkeys(one.network.budget for one in data.retrained))
    for one in data.retrained:
        line = {
            "color": ROLE_COLOURS.get(one.network.role, NEUTRAL),
            "dash": DASHES[budgets.index(one.network.budget) % len(DASHES)],
            "width": 1.5,
        }
        _add_losses(figure, one.network.name, [run.history for run in one.runs], line)
    return figure if figure.data else None


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


def _add_candidates(
    figure: go.Figure,
    data: ReportData,
    candidates: Sequence[Candidate],
    name: str,
    **looks: object,
) -> None:
    if candidates:
        figure.add_scatter(
            x=[one.macs for one in candidates],
            y=[one.loss for one in candidates],
            name=name,
            hovertext=[candidate_hover(data, one) for one in candidates],
            hoverinfo="text",
            **looks,
        )


def _add_budgets(figure: go.Figure, budgets: Sequence[Budget], macs: Sequence[int]) -> None:
    """Vertical lines with a label each; all labels on one side, so that no line crosses one."""
    bounds = [budget.max_macs for budget in budgets]
    to_right = bool(bounds) and max(macs) - max(bounds) > min(bounds) - min(macs)
    dashed = {"color": NEUTRAL, "width": 1, "dash": "dash"}
    solid = dashed | {"dash": "solid"}
    above_plot = {"yref": "paper", "ysizemode": "pixel", "yanchor": 1, "y0": 0}
    order = sorted(budgets, key=lambda budget: budget.max_macs, reverse=to_right)
    for level, budget in enumerate(order):
        if budget.min_macs:
            figure.add_vline(x=budget.min_macs, line=dashed | {"dash": "dot"})
        x, height = budget.max_macs, LABEL_HEIGHT * (level + 1)
        figure.add_vline(x=x, line=dashed)
        figure.add_shape(type="line", x0=x, x1=x, y1=height, line=solid, **above_plot)
        figure.add_annotation(
            x=x,
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=LABEL_HEIGHT * level,
            xanchor="left" if to_right else "right",
            text="≤ " + plot_text(budget.name, LABEL_LIMIT),
            showarrow=False,
        )


def _add_losses(
    figure: go.Figure,
    name: str,
    histories: Sequence[Sequence[Mapping[str, float]]],
    line: Mapping[str, object],
) -> None:
    """The mean training loss by epoch, over the histories that reach it."""
    losses: defaultdict[float, list[float]] = defaultdict(list)
    for history in histories:
        for epoch in history:
            losses[epoch["epoch"]].append(epoch["train_loss"])
    if losses:
        epochs = sorted(losses)
        means = [fmean(losses[epoch]) for epoch in epochs]
        figure.add_scatter(
            x=epochs,
            y=means,
            mode="lines" if len(epochs) > 1 else "markers",
            line=dict(line),
            name=plot_text(name, 2 * LABEL_LIMIT),
            hovertext=[
                loss_hover(name, epoch, mean) for epoch, mean in zip(epochs, means, strict=True)
            ],
            hoverinfo="text",
        )


def _two_lines(name: str) -> str:
    role, _, budget = name.partition(", ")
    label = plot_text(role, LABEL_LIMIT)
    return f"{label}<br>{plot_text(budget, LABEL_LIMIT)}" if budget else label


def _name_ticks(axis: object, names: Sequence[str]) -> None:
    """Names at the places 0, 1, …; as numbers, because names cut short may coincide."""
    axis.update(tickmode="array", tickvals=list(range(len(names))), ticktext=names, showgrid=False)  # type: ignore[attr-defined]


def _roles(retrained: Iterable[Retrained]) -> list[str]:
    found = {one.network.role for one in retrained}
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))
