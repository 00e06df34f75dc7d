"""The page of several runs: their fronts over each other, ranks where they mean something."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from octnas.files import write_text
from octnas.report.axes import LABEL_LIMIT
from octnas.report.formats import format_points, plot_text, plural
from octnas.report.hovers import candidate_hover, retrained_hover
from octnas.report.html_tables import html_table
from octnas.report.page import figure_html, page_of, paragraph
from octnas.report.plot_style import DASHES, ROLE_SYMBOLS, new_figure
from octnas.report.runs import ComparedRun, differing, groups, place_words, ranked
from octnas.results import SEARCHED, UNIFORM

COLOURS = ("#e4572e", "#3b8ede", "#2fa36b", "#9a7fd1", "#d9a531", "#c06fb0", "#5bb5d5", "#8a8a8a")
NOT_RANKED = (
    "not ranked: no other run has the same images and the same recipe of retraining, so that a "
    "difference would be of those"
)
RANKS_CAPTION = (
    "Hypervolume of the searched networks, in points of top-1 over the most that any training "
    "misses, averaged over MACs up to the vanilla network’s; ± is half of a 95 % interval over "
    "seeds. Only runs of the same data digest and the same recipe are ranked with each other."
)
RETRAINED_CAPTION = (
    "Searched networks (stars) and uniform α (diamonds), mean over seeds with one standard "
    "deviation. Compare runs of one group only."
)
FRONT_CAPTION = (
    "Fronts of the candidates by the supernets’ losses. Every supernet has a scale of its own: "
    "shapes compare, heights do not."
)


def write_runs_page(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write the comparison as one HTML file, whole or not at all."""
    write_text(path, page_of("Comparison", _body(runs)))


def _body(runs: Sequence[ComparedRun]) -> Iterable[str]:
    names = ", ".join(run.label for run in runs)
    yield f"<h1>Comparison</h1>{paragraph(names)}<h2>Ranks</h2>{_ranks(runs)}"
    yield paragraph(RANKS_CAPTION, "quiet")
    yield from figure_html("retrained", "Retrained networks", _retrained(runs), RETRAINED_CAPTION)
    yield from figure_html("front", "Fronts of the searches", _fronts(runs), FRONT_CAPTION)
    yield f"<h2>What differs in the settings</h2>{_settings(runs)}"


def rank_rows(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """For each run: group, label, hypervolume, what may be said, digests, networks."""
    rows: list[tuple[str, ...]] = []
    for number, group in enumerate(groups(runs), start=1):
        places = {place.run.label: place for place in ranked(group)}
        order = [*places, *(run.label for run in group if run.label not in places)]
        by_label = {run.label: run for run in group}
        for label in order:
            run, place = by_label[label], places.get(label)
            half = "" if place is None or not place.half_width else f" ± {place.half_width:.2f}"
            area = "not trained" if place is None else f"{place.area:.2f}{half}"
            said = "" if place is None else place_words(place)
            if place is not None and place.behind is not None:
                said = f"{said} ({format_points(place.behind.points)})"
            if not run.finished:
                area, said = "not finished", "not ranked: its networks are not all trained"
            elif len(group) == 1:
                said = NOT_RANKED
            trained = plural(len(run.data.retrained), "network")
            rows.append((label, str(number), area, said, *run.kind, trained))
    return rows


def _ranks(runs: Sequence[ComparedRun]) -> str:
    columns = (
        ("run", True), ("group", False), ("hypervolume", False), ("rank", True),
        ("data digest", True), ("recipe digest", True), ("retrained", True),
    )  # fmt: skip
    return html_table(columns, rank_rows(runs))


def _settings(runs: Sequence[ComparedRun]) -> str:
    found = differing(runs)
    if not found:
        return paragraph("Nothing.")
    columns = [("setting", True), *((run.label, True) for run in runs)]
    return html_table(columns, ([key, *values] for key, values in found.items()))


def _retrained(runs: Sequence[ComparedRun]) -> go.Figure | None:
    figure = new_figure("MACs", "top-1 on the val part, %")
    for number, run in enumerate(runs):
        for role in (SEARCHED, UNIFORM):
            networks = [one for one in run.data.retrained if one.network.role == role]
            networks.sort(key=lambda one: one.network.cost.macs)
            if not networks:
                continue
            colour = COLOURS[number % len(COLOURS)]
            figure.add_scatter(
                x=[one.network.cost.macs for one in networks],
                y=[100 * one.mean("val_top1") for one in networks],
                error_y={"array": [100 * (one.std("val_top1") or 0.0) for one in networks]},
                mode="lines+markers",
                line={"color": colour, "width": 1, "dash": "dot"},
                marker={"color": colour, "size": 11, "symbol": ROLE_SYMBOLS[role]},
                name=plot_text(f"{run.label}, {role}", 2 * LABEL_LIMIT),
                hovertext=[retrained_hover(run.data, one) for one in networks],
                hoverinfo="text",
            )
    return figure if figure.data else None


def _fronts(runs: Sequence[ComparedRun]) -> go.Figure | None:
    figure = new_figure("MACs", "loss on the rank part (supernet)")
    for number, run in enumerate(runs):
        front = run.data.front.candidates
        if front:
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
            figure.add_scatter(
                x=[one.macs for one in front],
                y=[one.loss for one in front],
                mode="lines+markers" if len(front) == 1 else "lines",
                line={"color": colour, "width": 2, "dash": dash, "shape": "hv"},
                name=plot_text(run.label, 2 * LABEL_LIMIT),
                hovertext=[candidate_hover(run.data, one) for one in front],
                hoverinfo="text",
            )
    return figure if figure.data else None
