"""The front before and after retraining; each figure is None where there is nothing to draw.

α of every site of the networks, as a heat map.

Curves over time: the search's hypervolume by evaluation, and the trainings' losses.

The ranking check as a figure: the supernet's loss beside the accuracy from scratch.

What the figures' hover boxes say; plotly interprets tags in them, so names are escaped.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go

from octnas.report.axes import LABEL_LIMIT, Axis, add_axes, axes, top_margin
from octnas.report.data import ReportData
from octnas.report.style import (
    ALPHA_SCALE,
    CLEAR,
    DASHES,
    FAINT,
    MACS_SCALE,
    NEUTRAL,
    ROLE_COLOURS,
    ROLE_SYMBOLS,
    format_alpha,
    format_loss,
    format_macs,
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
    PAPER,
    PLAIN,
    ROLES,
    SEARCHED,
    UNIFORM,
    Retrained,
)
from octnas.results.ranking import Ranked, Ranking
from octnas.space.costs import low_channels

# A hover box must fit on a phone.
ALPHAS_PER_LINE = 3
MOST_ALPHAS = 36
NAME_LIMIT = 40


def candidate_hover(data: ReportData, candidate: Candidate) -> str:
    """What a candidate is, and α at the sites where there was a choice."""
    share = format_percent(data.share(candidate.macs))
    lines = [
        f"<b>{plot_text(candidate.id)}</b> {plot_text(candidate.origin, NAME_LIMIT)}",
        f"{format_macs(candidate.macs)} MACs, {share} of vanilla",
        f"loss {format_loss(candidate.loss)}",
    ]
    return "<br>".join([*lines, *_alphas(data, candidate.alphas)])


def _alphas(data: ReportData, given: Mapping[str, float]) -> list[str]:
    """α of the sites where there was a choice, some to a line."""
    quantized = data.space.quantize(given)
    sites = data.space.searchable
    alphas = [f"{plot_text(site.name)} {format_alpha(quantized[site.name])}" for site in sites]
    if len(alphas) > MOST_ALPHAS:
        # What is longer than a screen cannot be read; clicking shows all of it.
        alphas = [*alphas[:MOST_ALPHAS], f"and {len(sites) - MOST_ALPHAS} more: click"]
    steps = range(0, len(alphas), ALPHAS_PER_LINE)
    return [" · ".join(alphas[start : start + ALPHAS_PER_LINE]) for start in steps]


def retrained_hover(data: ReportData, one: Retrained) -> str:
    """What a retrained network is, and how well it does."""
    network = one.network
    share = format_percent(data.share(network.cost.macs))
    lines = [
        f"<b>{plot_text(network.name, NAME_LIMIT)}</b>",
        network.architecture.id,
        described(one),
        f"{share} of vanilla",
    ]
    if network.role not in PLAIN:
        lines += _alphas(data, network.architecture.alphas)
    return "<br>".join(lines)


def alpha_hover(data: ReportData, name: str, site_name: str, alpha: float) -> str:
    """The quantized channels of one site of one network."""
    site = data.space.site[site_name]
    low = low_channels(alpha, site.channels, data.space.channel_multiple, site.groups)
    return (
        f"<b>{plot_text(name, NAME_LIMIT)}</b><br>"
        f"{plot_text(site_name)}: α {format_alpha(alpha)}<br>"
        f"{low} of {site.channels} channels at half resolution"
    )


def loss_hover(name: str, epoch: float, loss: float) -> str:
    """The training loss of a network at one epoch."""
    return f"<b>{plot_text(name, NAME_LIMIT)}</b><br>epoch {epoch:g}: {format_loss(loss)}"


# Roles whose networks are points of one curve; the others are points.
CURVES = (SEARCHED, FRONT, UNIFORM, PAPER, INCREASING)


@dataclass(frozen=True)
class _Series:
    """Some points of one look.

    Attributes:
        name: in the legend.
        points: id, MACs, activation bytes, height, hover text.
        looks: arguments of the trace.
    """

    name: str
    points: Sequence[tuple[str, int, int, float, str]]
    looks: dict[str, Any]


def front_figure(data: ReportData) -> go.Figure | None:
    """Supernet candidates: MACs against the loss on search_val, with front and budgets."""
    if not data.candidates:
        return None
    plain = [one for one in data.candidates if one.origin != UNIFORM]
    uniform = [one for one in data.candidates if one.origin == UNIFORM]
    small = {"color": FAINT, "size": 6}
    # Between two candidates of the front the cheaper one is what the MACs buy: hence the steps.
    steps = {"color": ROLE_COLOURS[SEARCHED], "width": 1.5, "shape": "hv"}
    dots = {"color": ROLE_COLOURS[SEARCHED], "size": 5}
    diamond = {"color": ROLE_COLOURS[UNIFORM], "size": 10, "symbol": ROLE_SYMBOLS[UNIFORM]}
    dotted = {"color": ROLE_COLOURS[UNIFORM], "width": 1, "dash": "dot"}
    ring = {"color": ROLE_COLOURS[SEARCHED], "width": 2.5}
    star = {"color": CLEAR, "size": 17, "symbol": "circle", "line": ring}
    kinds = (
        ("candidate", plain, {"mode": "markers", "marker": small}),
        ("front", data.front.candidates, {"mode": "lines+markers", "line": steps, "marker": dots}),
        ("uniform α", uniform, {"mode": "lines+markers", "line": dotted, "marker": diamond}),
        ("chosen", list(data.chosen.values()), {"mode": "markers", "marker": star}),
    )
    series = [_Series(name, _candidates(data, some), looks) for name, some, looks in kinds if some]
    figure = new_figure("MACs", "loss on search_val (supernet)", top=top_margin(data))
    return _drawn(figure, axes(data), series)


def retrained_figure(data: ReportData) -> go.Figure | None:
    """Retrained networks: MACs against mean top-1 on the val part, with std over seeds."""
    if not data.retrained:
        return None
    series = []
    for role in _roles(data.retrained):
        networks = [one for one in data.retrained if one.network.role == role]
        networks.sort(key=lambda one: one.network.cost.macs)
        colour = ROLE_COLOURS.get(role, NEUTRAL)
        symbol = ROLE_SYMBOLS.get(role, "circle")
        looks = {
            "error_y": {
                "array": [100 * (one.std("val_top1") or 0.0) for one in networks],
                "width": 5,
                "thickness": 1.5,
            },
            "mode": "lines+markers" if role in CURVES else "markers",
            "line": {"color": colour, "width": 1, "dash": "dot"},
            "marker": {"color": colour, "size": 11, "symbol": symbol},
        }
        series.append(_Series(plot_text(role), [_retrained(data, one) for one in networks], looks))
    figure = new_figure("MACs", "top-1 on the val part, %", top=top_margin(data))
    return _drawn(figure, axes(data), series)


def _candidates(
    data: ReportData, candidates: Sequence[Candidate]
) -> list[tuple[str, int, int, float, str]]:
    return [
        (
            one.id,
            one.macs,
            data.space.cost(data.space.quantize(one.alphas)).activation_bytes,
            one.loss,
            candidate_hover(data, one),
        )
        for one in sorted(candidates, key=lambda one: one.macs)
    ]


def _retrained(data: ReportData, one: Retrained) -> tuple[str, int, int, float, str]:
    cost, identity = one.network.cost, one.network.architecture.id
    top1 = 100 * one.mean("val_top1")
    return identity, cost.macs, cost.activation_bytes, top1, retrained_hover(data, one)


def _drawn(figure: go.Figure, found: Sequence[Axis], series: Sequence[_Series]) -> go.Figure:
    for one in series:
        figure.add_scatter(
            x=[macs for _, macs, _, _, _ in one.points],
            y=[height for _, _, _, height, _ in one.points],
            customdata=[identity for identity, *_ in one.points],
            hovertext=[hover for *_, hover in one.points],
            hoverinfo="text",
            name=one.name,
            **one.looks,
        )
    values = [
        [[axis.cost(identity, macs, size) for identity, macs, size, _, _ in one.points]
         for one in series]
        for axis in found
    ]  # fmt: skip
    add_axes(figure, found, values)
    return figure


def _roles(retrained: Iterable[Retrained]) -> list[str]:
    found = {one.network.role for one in retrained}
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))


def alpha_figure(data: ReportData) -> go.Figure | None:
    """Heat map of α: a column for each site, a row for each chosen or retrained architecture."""
    rows = alpha_rows(data)
    if not rows:
        return None
    sites = [site.name for site in data.space.sites]
    quantized = [data.space.quantize(alphas) for _, alphas in rows]
    figure = new_figure("", "")
    figure.add_heatmap(
        z=[[alphas[site] for site in sites] for alphas in quantized],
        text=[[format_alpha(alphas[site]) for site in sites] for alphas in quantized],
        texttemplate="%{text}",
        hovertext=[
            [alpha_hover(data, name, site, alphas[site]) for site in sites]
            for (name, _), alphas in zip(rows, quantized, strict=True)
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


LOSS_TICKS = [step * 10.0**power for power in range(-5, 3) for step in (1, 2, 5)]
# Where the losses lie so close that few of those fall between them.
FINE_TICKS = [step / 10 * 10.0**power for power in range(-5, 3) for step in range(10, 100, 2)]
_CLOSE = 8
_FEWEST = 2
_EPOCHS_SHOWN = 12


def hypervolume_figure(data: ReportData) -> go.Figure | None:
    """The area that the front dominates after each evaluation, as a share of the last one's."""
    order = sorted(data.candidates, key=lambda one: one.trial)
    areas = hypervolumes_so_far(data, order)
    if not areas or areas[-1] == 0:
        return None
    shares = [area / areas[-1] for area in areas]
    figure = new_figure("evaluations", "hypervolume, of the last")
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
    """The hypervolume after each candidate, up to the largest budget and a guess among all classes.

    Args:
        data: for the reference point.
        order: candidates as they were evaluated.
    """
    if not order or not data.budgets:
        return []
    classes = data.space.backbone_args.get("num_classes")
    worst = log(classes) if classes else max(one.loss for one in order)
    reference = (float(max(one.max_macs for one in data.budgets)), worst)
    return list(hypervolume_curve(order, reference))


def training_figure(data: ReportData) -> go.Figure | None:
    """Training loss over epochs: of the supernet, and of retrained networks as mean over seeds."""
    figure = new_figure("epoch", "training loss")
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
    if not figure.data:
        return None
    losses = [loss for trace in figure.data for loss in trace.y]
    # On a linear axis the ends of training would all look alike.
    figure.update_yaxes(type="log", **_ticks(min(losses), max(losses)))
    epochs = max(epoch for trace in figure.data for epoch in trace.x)
    figure.update_xaxes(dtick=max(1, round(epochs / _EPOCHS_SHOWN)))
    return figure


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Of a logarithmic axis; plotly's own where the losses lie too close for round ones."""
    ticks = FINE_TICKS if high < _CLOSE * low else LOSS_TICKS
    if sum(low <= tick <= high for tick in ticks) < _FEWEST:
        return {}
    return {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


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


RANKING_TOP = 84  # pixels above the plot: the scale of MACs and the mode bar
SUPERNET = "supernet"

RANKING_CAPTION = (
    "Each point is one architecture: to the right its loss with the supernet’s weights, upwards "
    "its accuracy when trained from scratch (mean over seeds; bars are one standard deviation). "
    "The better the supernet ranks, the closer the points come to one falling line. Colour is "
    "MACs; diamonds have nearly equal MACs, so that among them MACs explain next to nothing."
)


def ranking_figure(rankings: Mapping[str, Ranking]) -> go.Figure | None:
    """The supernet's loss against the mean stand-alone accuracy, with std over seeds."""
    ranking = rankings.get(SUPERNET)
    if ranking is None or not ranking.architectures:
        return None
    figure = new_figure("loss on search_val (supernet)", "top-1 from scratch, %", RANKING_TOP)
    scale = {"orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left"}
    scale |= {"y": 1.03, "yanchor": "bottom", "exponentformat": "SI", "outlinewidth": 0}
    figure.update_layout(
        coloraxis={"colorscale": MACS_SCALE, "colorbar": {**scale, "title": {"text": "MACs"}}}
    )
    # Losses differ by factors: those that cannot see fine detail would press all others together.
    figure.update_xaxes(type="log", nticks=8)
    ring = {"color": ROLE_COLOURS[SEARCHED], "width": 2}
    spread = [one for one in ranking.architectures if not one.narrow]
    narrow = [one for one in ranking.architectures if one.narrow]
    _add(figure, spread, "spread over MACs", {"size": 9})
    _add(figure, narrow, "nearly equal MACs", {"size": 11, "symbol": "diamond", "line": ring})
    return figure


def _add(
    figure: go.Figure, architectures: Sequence[Ranked], name: str, looks: Mapping[str, Any]
) -> None:
    if not architectures:
        return
    figure.add_scatter(
        x=[one.loss for one in architectures],
        y=[100 * fmean(one.truth) for one in architectures],
        error_y={
            "array": [100 * (_std(one) or 0.0) for one in architectures],
            "color": FAINT,
            "width": 3,
            "thickness": 1,
        },
        mode="markers",
        marker={**looks, "color": [one.macs for one in architectures], "coloraxis": "coloraxis"},
        name=name,
        hovertext=[_hover(one) for one in architectures],
        hoverinfo="text",
    )


def _std(one: Ranked) -> float | None:
    return stdev(one.truth) if len(one.truth) > 1 else None


def _hover(one: Ranked) -> str:
    std = _std(one)
    top1 = format_top1(100 * fmean(one.truth), None if std is None else 100 * std)
    alphas = [f"{plot_text(site)} {format_alpha(alpha)}" for site, alpha in one.alphas.items()]
    steps = range(0, len(alphas), ALPHAS_PER_LINE)
    lines = [
        f"<b>{plot_text(one.id)}</b>",
        f"{format_macs(one.macs)} MACs",
        f"{top1} % from scratch, {plural(len(one.truth), 'seed')}",
        f"loss {format_loss(one.loss)} in the supernet",
        *(" · ".join(alphas[start : start + ALPHAS_PER_LINE]) for start in steps),
    ]
    return "<br>".join(lines)
