"""Several runs side by side: which can be ranked, how they differ, and the page that shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from octnas.io.files import write_text
from octnas.report.data import ReportData
from octnas.report.figures import add_candidates, add_retrained
from octnas.report.page import render
from octnas.report.style import (
    DASHES,
    LABEL_LIMIT,
    NOT_COMPARED,
    format_points,
    new_figure,
    plot_text,
    plural,
)
from octnas.report.verdicts import LEVEL, areas_by_seed
from octnas.results.networks import SEARCHED, UNIFORM
from octnas.results.verdict import Difference, Verdict, difference, mean_interval

COLOURS = ("#e4572e", "#3b8ede", "#2fa36b", "#9a7fd1", "#d9a531", "#c06fb0", "#5bb5d5", "#8a8a8a")
NOT_RANKED = (
    "not ranked: no other run has the same images and retraining recipe, so a difference could be "
    "due to those"
)
RANK_COLUMNS = (
    ("run", True),
    ("group", False),
    ("hypervolume", False),
    ("rank", True),
    ("data digest", True),
    ("recipe digest", True),
    ("retrained", True),
)
"""The columns of `rank_rows`, and whether they hold text."""


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare, with a unique label and all settings by dotted key."""

    label: str
    data: ReportData
    settings: Mapping[str, Any]

    @property
    def kind(self) -> tuple[str, str]:
        """Digests of data and recipe; runs can be ranked only if both are equal."""
        return (self.data.digest, self.data.recipe)

    @property
    def finished(self) -> bool:
        """Whether every network is trained with every seed."""
        return "retrain" not in self.data.unfinished


@dataclass(frozen=True)
class Place:
    """The place of a run in its group: its hypervolume, and the difference to the first run."""

    run: ComparedRun
    area: float  # in points of top-1, mean over seeds
    half_width: float | None  # of its 95 % interval
    behind: Difference | None  # None for the first


def groups(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs by data and recipe, the largest group first."""
    found: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    return sorted(found.values(), key=len, reverse=True)


def ranked(group: Sequence[ComparedRun]) -> list[Place]:
    """The runs of a group whose retraining is finished, the best first.

    By the hypervolume of the searched networks, up to the largest vanilla network's MACs and the
    largest error of any training in the group.
    """
    most = max(run.data.space.vanilla_macs for run in group)
    errors = [
        1 - value for run in group for one in run.data.retrained for value in one.values("val_top1")
    ]
    areas = {
        run.label: areas_by_seed(run.data.of_role(SEARCHED), most, max(errors, default=1.0))
        for run in group
        if run.finished
    }
    order = sorted(
        (run for run in group if areas.get(run.label)), key=lambda run: -np.mean(areas[run.label])
    )
    confidence = 1 - LEVEL / max(1, len(order) - 1)
    places = []
    for run in order:
        # Areas are in points; `difference` takes shares.
        own, first = (np.array(areas[one.label])[:, None] / 100 for one in (run, order[0]))
        behind = None if run is order[0] else difference(own, first, confidence)
        places.append(Place(run, *mean_interval(areas[run.label]), behind))
    return places


def _place_words(place: Place) -> str:
    if place.behind is None:
        return "first"
    said = {
        Verdict.WORSE: "behind the first",
        Verdict.NOISE: "no difference to the first beyond the noise",
    }.get(place.behind.verdict, "not separable from the first: the noise of training is unknown")
    return f"{said} ({format_points(place.behind.points)})"


def rank_rows(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """For each run: label, group, hypervolume, rank, digests, number of networks."""
    rows: list[tuple[str, ...]] = []
    for number, group in enumerate(groups(runs), start=1):
        places = {place.run.label: place for place in ranked(group)}
        by_label = {run.label: run for run in group}
        for label in dict.fromkeys([*places, *by_label]):
            run, place = by_label[label], places.get(label)
            area = said = ""
            if not run.finished:
                area, said = "not finished", "not ranked: its networks are not all trained"
            elif place is None:
                area = "not trained"
            else:
                half = f" ± {place.half_width:.2f}" if place.half_width else ""
                area, said = f"{place.area:.2f}{half}", _place_words(place)
            if run.finished and len(group) == 1:
                said = NOT_RANKED
            networks = plural(len(run.data.retrained), "network")
            rows.append((label, str(number), area, said, *run.kind, networks))
    return rows


def differing(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The settings in which the runs differ, by dotted key, with each run's value."""
    found = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
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
    value = settings.get(key, NOT_COMPARED)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_runs_page(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write the comparison as one HTML file, whole or not at all."""
    figures = {"retrained": _retrained(runs), "front": _fronts(runs)}
    html = render(
        "comparison.html",
        title="Comparison",
        runs=runs,
        rank_columns=RANK_COLUMNS,
        rank_rows=rank_rows(runs),
        figures={name: figure for name, figure in figures.items() if figure.data},
        setting_columns=[("setting", True), *((run.label, True) for run in runs)],
        settings=[(key, *values) for key, values in differing(runs).items()],
    )
    write_text(path, html)


def _retrained(runs: Sequence[ComparedRun]) -> go.Figure:
    figure = new_figure("MACs", "top-1 on the val part, %")
    for number, run in enumerate(runs):
        for role in (SEARCHED, UNIFORM):
            colour = COLOURS[number % len(COLOURS)]
            add_retrained(figure, run.data, role, colour, name=f"{run.label}, {role}")
    return figure


def _fronts(runs: Sequence[ComparedRun]) -> go.Figure:
    scorers = " or ".join(dict.fromkeys(run.data.scorer for run in runs))
    figure = new_figure("MACs", f"loss on search_val ({scorers})")
    for number, run in enumerate(runs):
        front = run.data.front.candidates
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        add_candidates(
            figure,
            run.data,
            front,
            name=plot_text(run.label, 2 * LABEL_LIMIT),
            mode="lines+markers" if len(front) == 1 else "lines",
            line={"color": colour, "width": 2, "dash": dash, "shape": "hv"},
        )
    return figure
