"""One style for all figures, and numbers and names formatted for people.

Colours are legible on light and dark backgrounds; the page's style sheet colours the text of
figures, so that it follows the viewer's light or dark mode.
"""

from html import escape
from typing import Any

import plotly.graph_objects as go

from octnas.results.networks import (
    FRONT,
    INCREASING,
    NARROWER,
    ORIGINAL,
    PAPER,
    PRUNED,
    RANDOM,
    SEARCHED,
    SHALLOWER,
    SMALLER_IMAGES,
    UNIFORM,
    VANILLA,
    WORST,
    Network,
)

# Colour and symbol of a role, and how a baseline is called in sentences.
_ROLES = {
    SEARCHED: ("#e4572e", "star", ""),
    FRONT: ("#f09d51", "star-open", ""),
    UNIFORM: ("#3b8ede", "diamond", "uniform α"),
    PAPER: ("#5bb5d5", "diamond-open", "the paper’s uniform α"),
    INCREASING: ("#2fa36b", "triangle-up", "α increasing with depth"),
    RANDOM: ("#a3a847", "circle-open", "random architectures"),
    WORST: ("#b5544d", "x", "the worst by its score"),
    NARROWER: ("#c06fb0", "triangle-left", "a narrower plain network"),
    SHALLOWER: ("#8d6cab", "triangle-down", "a shallower plain network"),
    SMALLER_IMAGES: ("#d17f9f", "triangle-right", "the plain network on smaller images"),
    PRUNED: ("#4f9d9a", "square-open", "the pruned original"),
    VANILLA: ("#9a7fd1", "square", ""),
    ORIGINAL: ("#8a8a8a", "hexagram", ""),
}
ROLE_COLOURS = {role: colour for role, (colour, _, _) in _ROLES.items()}
ROLE_SYMBOLS = {role: symbol for role, (_, symbol, _) in _ROLES.items()}
BASELINES = {role: words for role, (_, _, words) in _ROLES.items() if words}
NEUTRAL = "#8a8a8a"
FAINT = "rgba(128, 128, 128, 0.5)"
GRID = "rgba(128, 128, 128, 0.22)"
CLEAR = "rgba(0, 0, 0, 0)"
FONT_SIZE = 13
TOP = 30  # pixels above a plot: room for the mode bar
LABEL_LIMIT = 22  # characters of a name beside a plot
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# Visible on white at the low end, on black at the high end.
ALPHA_SCALE = ((0.0, "#e6eef6"), (0.5, "#6fa8dc"), (1.0, "#1f4e8c"))
# All visible on white and on black.
MACS_SCALE = ((0.0, "#d9a531"), (0.5, "#2fa36b"), (1.0, "#3b6fd1"))


def new_figure(x_title: str, y_title: str, top: int = TOP) -> go.Figure:
    """An empty figure in the report's style, with ``top`` pixels above the plot."""
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "SI",
    }
    title = {"standoff": 10, "font": {"size": FONT_SIZE}}
    figure = go.Figure(layout_template="none")
    figure.update_layout(
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": "system-ui, sans-serif", "size": FONT_SIZE, "color": NEUTRAL},
        margin={"l": 56, "r": 12, "t": top, "b": 48},
        xaxis=axis | {"title": {"text": x_title, **title}},
        yaxis=axis | {"title": {"text": y_title, **title}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        modebar={"bgcolor": CLEAR, "color": NEUTRAL, "activecolor": ROLE_COLOURS[UNIFORM]},
        hoverlabel={"align": "left"},
    )
    return figure


MINUS = "\N{MINUS SIGN}"
NOT_COMPARED = "–"
UNITS = ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k"))


def format_count(count: float) -> str:
    """A count, such as of MACs, with four digits and a unit: ``3104000000`` → ``"3.104 G"``."""
    rounded = float(f"{count:.3e}")
    for size, unit in UNITS:
        if rounded >= size:
            whole_digits = len(str(int(rounded / size)))
            return f"{rounded / size:.{4 - whole_digits}f}{unit}"
    return f"{rounded:g}"


def format_bytes(size: float) -> str:
    """Bytes with a decimal unit: ``1048576`` → ``"1.049 MB"``."""
    text = format_count(size)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def format_percent(share: float) -> str:
    """A share between 0 and 1 in percent: ``0.4412`` → ``"44.1 %"``."""
    return f"{100 * share:.1f} %"


def format_points(points: float | None, half_width: float | None = None) -> str:
    """A difference in percentage points, with its interval if known: ``"−0.50 ± 0.20"``."""
    if points is None:
        return NOT_COMPARED
    text = f"{points:+.2f}".replace("-", MINUS)
    text = "0.00" if text[1:] == "0.00" else text
    return text + ("" if half_width is None else f" ± {half_width:.2f}")


def format_top1(percent: float, points: float | None = None) -> str:
    """Top-1 in percent with its spread over seeds, if known: ``"81.8 ± 0.4"``."""
    return f"{percent:.1f}" + ("" if points is None else f" ± {points:.1f}")


def format_loss(mean: float, std: float | None = None) -> str:
    """A loss with its spread over seeds, if known: ``"0.612 ± 0.010"``."""
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def format_seconds(seconds: float) -> str:
    """A duration: ``95`` → ``"1 min 35 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_alpha(alpha: float) -> str:
    """An octave ratio: at most three digits."""
    return f"{alpha:.3g}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``"1 seed"``, ``"3 seeds"``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def network_name(network: Network, reference: str, fine_tuned: bool) -> str:
    """What a network is called where the run began with a trained one.

    Args:
        network: to name.
        reference: what the trained network is called, as it came.
        fine_tuned: whether networks were fine-tuned from it; vanilla is then that network itself.
    """
    if network.role == ORIGINAL:
        return reference
    if network.role == VANILLA and fine_tuned:
        return "vanilla (the original fine-tuned)"
    return network.name


def plot_text(text: str, limit: int | None = None) -> str:
    """Text escaped for plotly, which interprets tags and entities; cut to ``limit`` characters."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return escape(text, quote=False)
