"""The page of several runs: their fronts over each other, ranks where they mean something.

Several runs beside each other: which may be ranked, and how they differ.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from octnas.io.files import write_text
from octnas.report.axes import LABEL_LIMIT
from octnas.report.data import ReportData
from octnas.report.figures import candidate_hover, retrained_hover
from octnas.report.page import figure_html, html_table, page_of, paragraph
from octnas.report.style import DASHES, ROLE_SYMBOLS, format_points, new_figure, plot_text, plural
from octnas.report.verdicts import LEVEL, areas_by_seed
from octnas.results.networks import SEARCHED, UNIFORM
from octnas.results.verdict import Difference, Verdict, difference, mean_interval


@dataclass(frozen=True)
class ComparedRun:
    """A run that is compared.

    Attributes:
        label: by which it is told from the others.
        data: what it found.
        settings: all of them, by dotted key.
    """

    label: str
    data: ReportData
    settings: Mapping[str, Any]

    @property
    def kind(self) -> tuple[str, str]:
        """Digests of data and recipe: runs of which both are equal may be ranked."""
        return (self.data.digest, self.data.recipe)

    @property
    def finished(self) -> bool:
        """Whether every network is trained with every seed."""
        return "retrain" not in self.data.unfinished


@dataclass(frozen=True)
class Place:
    """Where a run stands among those that it may be ranked with.

    Attributes:
        run: the run.
        area: hypervolume of its searched networks, in points of top-1, mean over seeds.
        half_width: of its 95 % interval; None with a single seed.
        behind: the difference to the first one; None of the first itself.
    """

    run: ComparedRun
    area: float
    half_width: float | None
    behind: Difference | None


def groups(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs by data and recipe, the largest group first."""
    found: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    return sorted(found.values(), key=len, reverse=True)


def ranked(group: Sequence[ComparedRun]) -> list[Place]:
    """The runs of one group whose retraining is finished, the best first.

    By the hypervolume of the searched networks, up to the most MACs of any vanilla network and to
    the largest error of any training in the group.
    """
    most = max(run.data.space.vanilla_macs for run in group)
    errors = [
        1 - value for run in group for one in run.data.retrained for value in one.values("val_top1")
    ]
    areas = {
        run.label: areas_by_seed(run.data.retrained, SEARCHED, most, max(errors, default=1.0))
        for run in group
        if run.finished
    }
    order = sorted(
        (run for run in group if areas.get(run.label)), key=lambda run: -np.mean(areas[run.label])
    )
    confidence = 1 - LEVEL / max(1, len(order) - 1)
    places = []
    for run in order:
        first, own = areas[order[0].label], areas[run.label]
        behind = None if run is order[0] else _difference(own, first, confidence)
        places.append(Place(run, *mean_interval(own), behind))
    return places


def _difference(own: Sequence[float], first: Sequence[float], confidence: float) -> Difference:
    """Of areas in points; `difference` takes shares."""
    one, other = (np.array(areas)[:, None] / 100 for areas in (own, first))
    return difference(one, other, confidence)


def place_words(place: Place) -> str:
    """What may be said of a run beside the first one."""
    if place.behind is None:
        return "first"
    match place.behind.verdict:
        case Verdict.WORSE:
            return "behind the first"
        case Verdict.NOISE:
            return "not told from the first: smaller than the noise"
        case _:
            return "not told from the first: the noise of training is not known"


def differing(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The settings in which the runs differ, by dotted key, with each run's value."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = {}
    for key in keys:
        values = [_shown(run.settings, key) for run in runs]
        if len(set(values)) > 1:
            found[key] = values
    return found


def flat(document: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a YAML document by dotted key; lists stay whole."""
    if not isinstance(document, Mapping):
        return {prefix: document}
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "–"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    figure = new_figure("MACs", "loss on search_val (supernet)")
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
