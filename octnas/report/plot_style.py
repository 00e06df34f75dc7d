"""How the figures look: colours that are legible on light and on dark, and one layout for all.

The page's style sheet gives text its colour, so that it follows the reader's light or dark mode.
"""

from typing import Any

import plotly.graph_objects as go

from octnas.results import (
    FRONT,
    GROWING,
    NARROWER,
    PAPER,
    RANDOM,
    SEARCHED,
    SHALLOWER,
    SMALLER_IMAGES,
    UNIFORM,
    VANILLA,
    WORST,
)

ROLE_COLOURS = {
    SEARCHED: "#e4572e",
    FRONT: "#f09d51",
    UNIFORM: "#3b8ede",
    PAPER: "#5bb5d5",
    GROWING: "#2fa36b",
    RANDOM: "#a3a847",
    WORST: "#b5544d",
    NARROWER: "#c06fb0",
    SHALLOWER: "#8d6cab",
    SMALLER_IMAGES: "#d17f9f",
    VANILLA: "#9a7fd1",
}
ROLE_SYMBOLS = {
    SEARCHED: "star",
    FRONT: "star-open",
    UNIFORM: "diamond",
    PAPER: "diamond-open",
    GROWING: "triangle-up",
    RANDOM: "circle-open",
    WORST: "x",
    NARROWER: "triangle-left",
    SHALLOWER: "triangle-down",
    SMALLER_IMAGES: "triangle-right",
    VANILLA: "square",
}
NEUTRAL = "#8a8a8a"
FAINT = "rgba(128, 128, 128, 0.5)"
GRID = "rgba(128, 128, 128, 0.22)"
CLEAR = "rgba(0, 0, 0, 0)"
FONT_SIZE = 13
TOP = 30  # pixels above a plot: room for the mode bar
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# The lowest share is still visible on white, the highest on black.
ALPHA_SCALE = ((0.0, "#e6eef6"), (0.5, "#6fa8dc"), (1.0, "#1f4e8c"))
# From few to many; every colour is visible on white and on black.
MACS_SCALE = ((0.0, "#d9a531"), (0.5, "#2fa36b"), (1.0, "#3b6fd1"))


def new_figure(x_title: str, y_title: str, top: int = TOP) -> go.Figure:
    """An empty figure in the report's looks; ``top`` pixels are left above the plot."""
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "SI",
    }
    looks = {"standoff": 10, "font": {"size": FONT_SIZE}}  # plotly's larger ones fit on no phone
    figure = go.Figure(layout_template="none")
    figure.update_layout(
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": "system-ui, sans-serif", "size": FONT_SIZE, "color": NEUTRAL},
        margin={"l": 56, "r": 12, "t": top, "b": 48},
        xaxis=axis | {"title": {"text": x_title, **looks}},
        yaxis=axis | {"title": {"text": y_title, **looks}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        modebar={"bgcolor": CLEAR, "color": NEUTRAL, "activecolor": ROLE_COLOURS[UNIFORM]},
        hoverlabel={"align": "left"},
    )
    return figure
