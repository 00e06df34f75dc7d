"""The front before and after retraining; each figure is None where there is nothing to draw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from octnas.front import Candidate
from octnas.report.axes import Axis, add_axes, axes, top_margin
from octnas.report.data import ReportData
from octnas.report.formats import plot_text
from octnas.report.hovers import candidate_hover, retrained_hover
from octnas.report.plot_style import (
    CLEAR,
    FAINT,
    NEUTRAL,
    ROLE_COLOURS,
    ROLE_SYMBOLS,
    new_figure,
)
from octnas.results import FRONT, GROWING, PAPER, ROLES, SEARCHED, UNIFORM, Retrained

# Roles whose networks are points of one curve; the others are points.
CURVES = (SEARCHED, FRONT, UNIFORM, PAPER, GROWING)


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
    """Supernet candidates: MACs against the loss on the rank part, with front and budgets."""
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
    figure = new_figure("MACs", "loss on the rank part (supernet)", top=top_margin(data))
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
            data.space.cost(data.space.realise(one.alphas)).activation_bytes,
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
