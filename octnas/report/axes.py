"""What the front may be drawn over: MACs, activation memory, latency on each device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from octnas.report.data import ReportData
from octnas.report.style import NEUTRAL, TOP, plot_text
from octnas.space.costs import Budget

LABEL_LIMIT = 22  # characters of a name beside a plot
LABEL_HEIGHT = 18  # pixels of a line of text above a plot
MACS = "macs"


@dataclass(frozen=True)
class Axis:
    """One cost to draw over.

    Attributes:
        key: by which the page knows it.
        title: of the axis, as plotly takes it.
        label: among the choices; plain text.
        cost: of an architecture by its id, its MACs and its activation bytes; None where it is
            not known.
        bounds: budgets in its unit: name, upper bound, lower bound (0 for none).
    """

    key: str
    title: str
    label: str
    cost: Callable[[str, int, int], float | None]
    bounds: tuple[tuple[str, float, float], ...]


def axes(data: ReportData) -> list[Axis]:
    """All axes that something is known of; MACs first."""
    macs = tuple((one.name, one.max_macs, one.min_macs) for one in data.budgets)
    found = [
        Axis(MACS, "MACs", "MACs", lambda _, macs, __: macs, macs),
        Axis(
            "activation",
            "activation memory of one image, bytes",
            "activation memory of one image, bytes",
            lambda _, __, size: size,
            _bounds(data.budgets, "activation", 1.0),
        ),
    ]
    for number, one in enumerate(data.latencies):
        measured = {identity: timing.median for identity, timing in one.measured.items()}
        # A run's own table is the one that its budgets are in.
        own = _bounds(data.budgets, "latency", 1e-6) if one.own else ()
        for key, kind, known in (
            (f"measured{number}", "measured on", measured),
            (f"predicted{number}", "predicted for", one.predicted),
        ):
            if known:
                # A long name of a device must not push out what tells two apart.
                where = f"ms {kind} {plot_text(one.device, LABEL_LIMIT)}"
                title = f"{where},<br>{plot_text(one.settings)}"
                found.append(Axis(key, title, f"ms {kind} {one.name}", _latency(known), own))
    return found


def _latency(known: Mapping[str, float]) -> Callable[[str, int, int], float | None]:
    def cost(identity: str, _: int, __: int) -> float | None:
        return 1e3 * known[identity] if identity in known else None

    return cost


def _bounds(
    budgets: Sequence[Budget], cost: str, unit: float
) -> tuple[tuple[str, float, float], ...]:
    return tuple(
        (one.name, unit * one.bound.upper, unit * one.bound.lower)
        for one in budgets
        if one.bound is not None and one.bound.cost == cost
    )


def top_margin(data: ReportData) -> int:
    """Pixels above a plot that the labels of the budgets need."""
    return TOP + LABEL_HEIGHT * len(data.budgets)


def add_axes(
    figure: go.Figure, found: Sequence[Axis], values: Sequence[Sequence[Sequence[float | None]]]
) -> None:
    """Let a figure of MACs be drawn over the others, too: the page finds them in its ``meta``.

    Args:
        figure: whose x axis is MACs.
        found: the axes.
        values: by axis, then by trace, of its points.
    """
    meta = {}
    for axis, by_trace in zip(found, values, strict=True):
        known = [value for trace in by_trace for value in trace if value is not None]
        shapes, labels = _lines(axis, known)
        meta[axis.key] = {
            "title": axis.title,
            "label": axis.label,
            "x": [list(trace) for trace in by_trace],
            "shapes": shapes,
            "annotations": labels,
        }
    figure.update_layout(
        meta={"axes": meta},
        shapes=meta[MACS]["shapes"],
        annotations=meta[MACS]["annotations"],
    )


def _lines(axis: Axis, known: Sequence[float]) -> tuple[list[Any], list[Any]]:
    """Vertical lines with a label each; all labels on one side, so that no line crosses one."""
    uppers = [upper for _, upper, _ in axis.bounds]
    to_right = bool(uppers and known) and max(known) - max(uppers) > min(uppers) - min(known)
    shapes: list[Any] = []
    labels: list[Any] = []
    dashed = {"color": NEUTRAL, "width": 1, "dash": "dash"}
    across = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    above = {"type": "line", "yref": "paper", "ysizemode": "pixel", "yanchor": 1, "y0": 0}
    for level, (name, upper, lower) in enumerate(
        sorted(axis.bounds, key=lambda one: one[1], reverse=to_right)
    ):
        if lower:
            shapes.append({**across, "x0": lower, "x1": lower, "line": dashed | {"dash": "dot"}})
        shapes.append({**across, "x0": upper, "x1": upper, "line": dashed})
        height = LABEL_HEIGHT * (level + 1)
        solid = dashed | {"dash": "solid"}
        shapes.append({**above, "x0": upper, "x1": upper, "y1": height, "line": solid})
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
