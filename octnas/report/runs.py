"""Several runs beside each other: which may be ranked, and how they differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octnas.report.areas import areas_by_seed
from octnas.report.compare import LEVEL
from octnas.report.data import ReportData
from octnas.results import SEARCHED
from octnas.verdict import Difference, Verdict, difference, mean_interval


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
