"""The ranking check as a figure: the supernet's loss beside the accuracy from scratch."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go

from octnas.ranking import Ranked, Ranking
from octnas.report.formats import (
    format_alpha,
    format_loss,
    format_macs,
    format_top1,
    plot_text,
    plural,
)
from octnas.report.hovers import ALPHAS_PER_LINE
from octnas.report.plot_style import FAINT, MACS_SCALE, ROLE_COLOURS, new_figure
from octnas.results import SEARCHED

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
    figure = new_figure("loss on the rank part (supernet)", "top-1 from scratch, %", RANKING_TOP)
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
