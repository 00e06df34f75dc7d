"""Curves over time: the search's hypervolume by evaluation, and the trainings' losses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from octnas.front import Candidate, hypervolume_curve
from octnas.report.axes import LABEL_LIMIT
from octnas.report.data import ReportData
from octnas.report.formats import format_percent, plot_text
from octnas.report.hovers import loss_hover
from octnas.report.plot_style import DASHES, NEUTRAL, ROLE_COLOURS, new_figure
from octnas.results import SEARCHED

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
