"""The figures of a report; each is None where there is nothing to draw."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go

from octnas.report.axes import add_axes, top_margin
from octnas.report.data import ReportData
from octnas.report.style import (
    ALPHA_SCALE,
    CLEAR,
    DASHES,
    FAINT,
    LABEL_LIMIT,
    MACS_SCALE,
    NEUTRAL,
    ROLE_COLOURS,
    ROLE_SYMBOLS,
    format_alpha,
    format_count,
    format_loss,
    format_percent,
    format_top1,
    new_figure,
    plot_text,
    plural,
)
from octnas.report.verdicts import described
from octnas.results.front import Candidate, hypervolume_curve
from octnas.results.networks import (
    FRONT,
    INCREASING,
    ORIGINAL,
    PAPER,
    PLAIN,
    ROLES,
    SEARCHED,
    UNIFORM,
    VANILLA,
    Retrained,
)
from octnas.results.ranking import Ranked, Ranking

# A hover box must fit on a phone.
ALPHAS_PER_LINE = 3
MOST_ALPHAS = 36
NAME_LIMIT = 40
# Roles whose networks form a curve.
CURVES = (SEARCHED, FRONT, UNIFORM, PAPER, INCREASING)


def all_figures(data: ReportData) -> dict[str, go.Figure]:
    """The figures that have something to show, by name."""
    figures = {
        "front": front_figure(data),
        "retrained": retrained_figure(data),
        "alpha": alpha_figure(data),
        "hypervolume": hypervolume_figure(data),
        "ranking": ranking_figure(data.rankings),
        "training": training_figure(data),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def front_figure(data: ReportData) -> go.Figure | None:
    """Candidates: MACs against the score on search_val, with front and budgets."""
    if not data.candidates:
        return None
    plain = [one for one in data.candidates if one.origin != UNIFORM]
    uniform = [one for one in data.candidates if one.origin == UNIFORM]
    red, blue = ROLE_COLOURS[SEARCHED], ROLE_COLOURS[UNIFORM]
    # Between two candidates of the front, these MACs buy the smaller one: hence the steps.
    steps = {"color": red, "width": 1.5, "shape": "hv"}
    dotted = {"color": blue, "width": 1, "dash": "dot"}
    diamond = {"color": blue, "size": 10, "symbol": ROLE_SYMBOLS[UNIFORM]}
    ring = {"color": CLEAR, "size": 17, "symbol": "circle", "line": {"color": red, "width": 2.5}}
    styles: Mapping[str, tuple[Iterable[Candidate], dict[str, Any]]] = {
        "candidate": (plain, {"mode": "markers", "marker": {"color": FAINT, "size": 6}}),
        "front": (
            data.front.candidates,
            {"mode": "lines+markers", "line": steps, "marker": {"color": red, "size": 5}},
        ),
        "uniform α": (uniform, {"mode": "lines+markers", "line": dotted, "marker": diamond}),
        "chosen": (data.chosen.values(), {"mode": "markers", "marker": ring}),
    }
    score = f"{data.measure} on search_val ({data.scorer})"
    figure = new_figure("MACs", score, top=top_margin(data))
    for name, (candidates, style) in styles.items():
        add_candidates(figure, data, candidates, name=name, **style)
    add_axes(figure, data)
    return figure


def add_candidates(
    figure: go.Figure, data: ReportData, candidates: Iterable[Candidate], **style: Any
) -> None:
    """Add a trace of candidates, if there are any, sorted by MACs."""
    if order := sorted(candidates, key=lambda one: one.macs):
        figure.add_scatter(
            x=[one.macs for one in order],
            y=[one.loss for one in order],
            customdata=[one.id for one in order],
            hovertext=[_candidate_hover(data, one) for one in order],
            hoverinfo="text",
            **style,
        )


def retrained_figure(data: ReportData) -> go.Figure | None:
    """Networks: MACs against mean top-1 on the val part, with std over seeds."""
    if not data.retrained:
        return None
    figure = new_figure("MACs", "top-1 on the val part, %", top=top_margin(data))
    for role in ROLES:
        # Two roles have names of their own where the run began with a trained network.
        own = next((data.name_of(one.network) for one in data.of_role(role)), role)
        name = own if role in (VANILLA, ORIGINAL) else role
        add_retrained(figure, data, role, ROLE_COLOURS[role], name=name)
    add_axes(figure, data)
    return figure


def add_retrained(figure: go.Figure, data: ReportData, role: str, colour: str, name: str) -> None:
    """Add a trace of the retrained networks of a role, if there are any, sorted by MACs."""
    if order := sorted(data.of_role(role), key=lambda one: one.network.cost.macs):
        figure.add_scatter(
            x=[one.network.cost.macs for one in order],
            y=[100 * one.mean("val_top1") for one in order],
            error_y={
                "array": [100 * (one.std("val_top1") or 0.0) for one in order],
                "width": 5,
                "thickness": 1.5,
            },
            mode="lines+markers" if role in CURVES else "markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"color": colour, "size": 11, "symbol": ROLE_SYMBOLS[role]},
            customdata=[one.network.architecture.id for one in order],
            hovertext=[_retrained_hover(data, one) for one in order],
            hoverinfo="text",
            name=plot_text(name, 2 * LABEL_LIMIT),
        )


def _candidate_hover(data: ReportData, one: Candidate) -> str:
    return "<br>".join(
        [
            f"<b>{plot_text(one.id)}</b> {plot_text(one.origin, NAME_LIMIT)}",
            f"{format_count(one.macs)} MACs, {format_percent(data.share(one.macs))} of vanilla",
            f"{data.measure} {format_loss(one.loss)}",
            *_searchable_alphas(data, one.alphas),
        ]
    )


def _retrained_hover(data: ReportData, one: Retrained) -> str:
    network = one.network
    plain = network.role in PLAIN
    return "<br>".join(
        [
            f"<b>{plot_text(data.name_of(network), NAME_LIMIT)}</b>",
            network.architecture.id,
            described(one),
            f"{format_percent(data.share(network.cost.macs))} of vanilla",
            *([] if plain else _searchable_alphas(data, network.architecture.alphas)),
        ]
    )


def _searchable_alphas(data: ReportData, alphas: Mapping[str, float]) -> list[str]:
    quantized = data.space.quantize(alphas)
    return _alpha_lines({site.name: quantized[site.name] for site in data.space.searchable})


def _alpha_lines(alphas: Mapping[str, float]) -> list[str]:
    """α by site, several to a line, and no more than fit on a screen: a click shows all."""
    found = [f"{plot_text(site)} {format_alpha(alpha)}" for site, alpha in alphas.items()]
    if more := len(found[MOST_ALPHAS:]):
        found[MOST_ALPHAS:] = [f"and {more} more: click"]
    steps = range(0, len(found), ALPHAS_PER_LINE)
    return [" · ".join(found[start : start + ALPHAS_PER_LINE]) for start in steps]


def alpha_figure(data: ReportData) -> go.Figure | None:
    """Heat map of α: a column for each site, a row for each chosen or retrained architecture."""
    rows = {name: data.space.quantize(alphas) for name, alphas in _alpha_rows(data).items()}
    if not rows:
        return None
    sites = data.space.sites
    figure = new_figure("", "")
    figure.add_heatmap(
        z=[[alphas[site.name] for site in sites] for alphas in rows.values()],
        text=[[format_alpha(alphas[site.name]) for site in sites] for alphas in rows.values()],
        texttemplate="%{text}",
        hovertext=[
            [
                f"<b>{plot_text(name, NAME_LIMIT)}</b><br>"
                f"{plot_text(site.name)}: α {format_alpha(alphas[site.name])}<br>"
                f"{round(alphas[site.name] * site.channels)} of {site.channels} channels at half "
                "resolution"
                for site in sites
            ]
            for name, alphas in rows.items()
        ],
        hoverinfo="text",
        zmin=0,
        zmax=1,
        colorscale=ALPHA_SCALE,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    names = [[plot_text(part, LABEL_LIMIT) for part in name.split(", ", 1)] for name in rows]
    # Ticks at numbers, since shortened names may coincide.
    for axis, labels in (
        (figure.layout.xaxis, [plot_text(site.name, LABEL_LIMIT) for site in sites]),
        (figure.layout.yaxis, ["<br>".join(parts) for parts in names]),
    ):
        ticks = list(range(len(labels)))
        axis.update(tickmode="array", tickvals=ticks, ticktext=labels, showgrid=False)
    figure.update_xaxes(autotickangles=[0, 90])
    figure.update_yaxes(autorange="reversed")
    return figure


def _alpha_rows(data: ReportData) -> dict[str, Mapping[str, float]]:
    """α by site, by name: for each budget the chosen architecture and its baselines; the rest."""
    networks = [one.network for one in data.retrained if one.network.role not in PLAIN]
    rows: dict[str, Mapping[str, float]] = {}
    for budget in data.budgets:
        if chosen := data.chosen.get(budget.name):
            rows[f"{SEARCHED}, {budget.name}"] = chosen.alphas
        for one in networks:
            if one.budget == budget.name:
                rows.setdefault(one.name, one.architecture.alphas)
    for one in networks:
        rows.setdefault(one.name, one.architecture.alphas)
    return rows


def hypervolume_figure(data: ReportData) -> go.Figure | None:
    """The hypervolume of the front after each evaluation, as a share of the final one."""
    order = sorted(data.candidates, key=lambda one: one.trial)
    areas = hypervolumes_so_far(data, order)
    if not areas or areas[-1] == 0:
        return None
    shares = [area / areas[-1] for area in areas]
    figure = new_figure("evaluations", "hypervolume, share of final")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.add_scatter(
        x=list(range(1, len(areas) + 1)),
        y=shares,
        mode="lines" if len(areas) > 1 else "markers",
        line={"color": ROLE_COLOURS[SEARCHED], "width": 2, "shape": "hv"},
        name="search",
        hovertext=[
            f"{number} evaluations: {format_percent(share)}<br>{plot_text(one.origin)}"
            for number, (share, one) in enumerate(zip(shares, order, strict=True), start=1)
        ],
        hoverinfo="text",
    )
    return figure


def hypervolumes_so_far(data: ReportData, order: Sequence[Candidate]) -> list[float]:
    """The hypervolume after each candidate, up to the largest budget and the loss of guessing."""
    if not order or not data.budgets:
        return []
    classes = data.space.backbone_args.get("num_classes")
    worst = log(classes) if classes else max(one.loss for one in order)
    reference = (float(max(one.max_macs for one in data.budgets)), worst)
    return list(hypervolume_curve(order, reference))


_EPOCHS_SHOWN = 12


def training_figure(data: ReportData) -> go.Figure | None:
    """Training loss by epoch: the supernet's, and of retrained networks the mean over seeds."""
    figure = new_figure("epoch", "training loss")
    # On a linear axis, the ends of all trainings would look alike.
    figure.update_yaxes(type="log", tickformat=".6~g")
    _add_losses(figure, "supernet", data.supernet_history, {"color": NEUTRAL, "width": 3})
    budgets = list(dict.fromkeys(one.network.budget for one in data.retrained))
    for one in data.retrained:
        dash = DASHES[budgets.index(one.network.budget) % len(DASHES)]
        line = {"color": ROLE_COLOURS[one.network.role], "dash": dash, "width": 1.5}
        _add_losses(
            figure,
            data.name_of(one.network),
            [row for run in one.runs for row in run.history],
            line,
        )
    if not figure.data:
        return None
    epochs = max(epoch for trace in figure.data for epoch in trace.x)
    figure.update_xaxes(dtick=max(1, round(epochs / _EPOCHS_SHOWN)))
    return figure


def _add_losses(
    figure: go.Figure, name: str, rows: Iterable[Mapping[str, float]], line: dict[str, object]
) -> None:
    """Add the mean training loss of the rows of each epoch."""
    losses: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        losses[row["epoch"]].append(row["train_loss"])
    if losses:
        means = {epoch: fmean(losses[epoch]) for epoch in sorted(losses)}
        title = f"<b>{plot_text(name, NAME_LIMIT)}</b><br>epoch"
        figure.add_scatter(
            x=list(means),
            y=list(means.values()),
            mode="lines" if len(means) > 1 else "markers",
            line=line,
            name=plot_text(name, 2 * LABEL_LIMIT),
            hovertext=[f"{title} {epoch:g}: {format_loss(mean)}" for epoch, mean in means.items()],
            hoverinfo="text",
        )


RANKING_TOP = 84  # pixels above the plot: the scale of MACs and the mode bar


def ranking_figure(rankings: Mapping[str, Ranking]) -> go.Figure | None:
    """The first score's loss against the mean accuracy once trained, with std over seeds."""
    source, ranking = next(iter(rankings.items()), ("", None))
    if ranking is None or not ranking.architectures:
        return None
    alone = "fine-tuned" if ranking.tuned else "from scratch"
    figure = new_figure(f"loss on search_val ({source})", f"top-1 {alone}, %", RANKING_TOP)
    scale = {"orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left"}
    scale |= {"y": 1.03, "yanchor": "bottom", "exponentformat": "SI", "outlinewidth": 0}
    figure.update_layout(
        coloraxis={"colorscale": MACS_SCALE, "colorbar": {**scale, "title": {"text": "MACs"}}}
    )
    # Losses differ by factors: a few large ones would squeeze all others together.
    figure.update_xaxes(type="log", nticks=8)
    ring = {"color": ROLE_COLOURS[SEARCHED], "width": 2}
    for name, narrow, marker in (
        ("spread over MACs", False, {"size": 9}),
        ("nearly equal MACs", True, {"size": 11, "symbol": "diamond", "line": ring}),
    ):
        if found := [one for one in ranking.architectures if one.narrow == narrow]:
            figure.add_scatter(
                x=[one.loss for one in found],
                y=[100 * fmean(one.truth) for one in found],
                error_y={
                    "array": [100 * (_std(one) or 0.0) for one in found],
                    "color": FAINT,
                    "width": 3,
                    "thickness": 1,
                },
                mode="markers",
                marker={**marker, "color": [one.macs for one in found], "coloraxis": "coloraxis"},
                name=name,
                hovertext=[_ranked_hover(one, source, alone) for one in found],
                hoverinfo="text",
            )
    return figure


def _std(one: Ranked) -> float | None:
    return stdev(one.truth) if len(one.truth) > 1 else None


def _ranked_hover(one: Ranked, source: str, alone: str) -> str:
    std = _std(one)
    top1 = format_top1(100 * fmean(one.truth), None if std is None else 100 * std)
    return "<br>".join(
        [
            f"<b>{plot_text(one.id)}</b>",
            f"{format_count(one.macs)} MACs",
            f"{top1} % {alone}, {plural(len(one.truth), 'seed')}",
            f"loss {format_loss(one.loss)} ({source})",
            *_alpha_lines(one.alphas),
        ]
    )
