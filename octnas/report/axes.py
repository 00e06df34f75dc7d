"""The costs that a front can be drawn over: MACs, activation memory, latency on each device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from octnas.report.data import ReportData
from octnas.report.style import LABEL_LIMIT, NEUTRAL, TOP, plot_text
from octnas.space.costs import Budget

LABEL_HEIGHT = 18  # pixels of a line of text above a plot
MACS = "macs"
_ACTIVATION = "activation memory per image, bytes"
_Bounds = tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Axis:
    """A cost to draw over.

    Attributes:
        key: its name within the page.
        title: of the axis, in plotly's markup.
        label: in the page's menu, plain text.
        costs: by architecture id, where known.
        bounds: budgets in this unit: name, upper bound, lower bound (0 for none).
    """

    key: str
    title: str
    label: str
    costs: Mapping[str, float]
    bounds: _Bounds


def axes(data: ReportData) -> list[Axis]:
    """All costs that are known of some network, MACs first."""
    macs = {name: cost.macs for name, cost in data.costs.items()}
    memory = {name: cost.activation_bytes for name, cost in data.costs.items()}
    bounds = tuple(
        (one.name, one.max_macs, one.min_macs)
        for one in data.budgets
        if one.bound is None or one.bound.cost != "peak"
    )
    found = [
        Axis(MACS, "MACs", "MACs", macs, bounds),
        Axis("activation", _ACTIVATION, _ACTIVATION, memory, _bounds(data.budgets, "activation")),
    ]
    for number, one in enumerate(data.latencies):
        own = _bounds(data.budgets, "latency", 1e-6) if one.own else ()
        measured = {name: 1e3 * timing.median for name, timing in one.measured.items()}
        predicted = {name: 1e3 * seconds for name, seconds in one.predicted.items()}
        for key, kind, known in (
            (f"measured{number}", "measured on", measured),
            (f"predicted{number}", "predicted for", predicted),
        ):
            if known:
                # The device's name is cut, so that the settings stay visible.
                where = f"ms {kind} {plot_text(one.device, LABEL_LIMIT)}"
                title = f"{where},<br>{plot_text(one.settings)}"
                found.append(Axis(key, title, f"ms {kind} {one.name}", known, own))
    return found


def _bounds(budgets: Sequence[Budget], cost: str, unit: float = 1.0) -> _Bounds:
    return tuple(
        (budget.name, unit * one.upper, unit * one.lower)
        for budget in budgets
        for one in budget.bounds
        if one.cost == cost
    )


def top_margin(data: ReportData) -> int:
    """Pixels above a plot, with room for the labels of the budgets."""
    return TOP + LABEL_HEIGHT * len(data.budgets)


def add_axes(figure: go.Figure, data: ReportData) -> None:
    """Draw a figure over MACs, and leave the other axes in its ``meta`` for the page's script.

    Every trace names its architectures in ``customdata``.
    """
    meta: dict[str, Any] = {}
    for axis in axes(data):
        by_trace = [[axis.costs.get(name) for name in trace.customdata] for trace in figure.data]
        shapes, labels = _lines(axis, [cost for trace in by_trace for cost in trace if cost])
        meta[axis.key] = {
            "title": axis.title,
            "label": axis.label,
            "x": by_trace,
            "shapes": shapes,
            "annotations": labels,
        }
    macs = meta[MACS]
    for trace, costs in zip(figure.data, macs["x"], strict=True):
        trace.x = costs
    figure.layout.meta = {"axes": meta}
    figure.update_layout({key: macs[key] for key in ("shapes", "annotations")})


def _lines(axis: Axis, known: Sequence[float]) -> tuple[list[Any], list[Any]]:
    """Vertical lines with labels, all on the side where no line crosses them."""
    uppers = [upper for _, upper, _ in axis.bounds]
    to_right = bool(uppers and known) and max(known) - max(uppers) > min(uppers) - min(known)
    shapes: list[Any] = []
    labels: list[Any] = []
    line = {"color": NEUTRAL, "width": 1}
    across = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    above = {"type": "line", "yref": "paper", "ysizemode": "pixel", "yanchor": 1, "y0": 0}
    bounds = sorted(axis.bounds, key=lambda one: one[1], reverse=to_right)
    for level, (name, upper, lower) in enumerate(bounds):
        if lower:
            shapes.append({**across, "x0": lower, "x1": lower, "line": line | {"dash": "dot"}})
        shapes.append({**across, "x0": upper, "x1": upper, "line": line | {"dash": "dash"}})
        height = LABEL_HEIGHT * (level + 1)
        shapes.append({**above, "x0": upper, "x1": upper, "y1": height, "line": line})
        labels.append(
            {
                "x": upper,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": LABEL_HEIGHT * level,
                "xanchor": "left" if to_right else "right",
                "text": "≤ " + plot_text(name, LABEL_LIMIT),
                "showarrow": False,
            }
        )
    return shapes, labels
