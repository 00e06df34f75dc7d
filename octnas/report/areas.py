"""The area that networks of a kind dominate, and how it is said."""

from collections.abc import Sequence

import numpy as np

from octnas.front import Candidate, Front
from octnas.report.compare import BASELINES
from octnas.report.data import ReportData
from octnas.results import SEARCHED, Retrained
from octnas.verdict import mean_interval


def hypervolumes(data: ReportData) -> dict[str, tuple[float, float | None]]:
    """By role the area that its networks dominate, with half of its 95 % interval over seeds.

    In MACs, as shares of the vanilla network's, times points of top-1 error: up to all of vanilla's
    MACs and to the largest error of any training. The vanilla network counts in none.
    """
    worst = max(
        (1 - value for one in data.retrained for value in one.values("val_top1")), default=1
    )
    found = {}
    for role in (SEARCHED, *BASELINES):
        if areas := areas_by_seed(data.retrained, role, data.space.vanilla_macs, worst):
            found[role] = mean_interval(areas)
    return found


def areas_by_seed(
    retrained: Sequence[Retrained], role: str, most_macs: int, worst: float
) -> list[float]:
    """For each seed the area that the networks of a role dominate, in points of top-1.

    Args:
        retrained: the networks.
        role: of those that count. Where there are several of it for a budget, told apart by their
            numbers, each is as good a try as the others: the mean of their areas counts, not the
            area of the best.
        most_macs: MACs up to which it goes; areas are shares of them.
        worst: error (0 to 1) up to which it goes.
    """
    by_budget: dict[str, list[Retrained]] = {}
    for one in retrained:
        if one.network.role == role:
            by_budget.setdefault(one.network.budget, []).append(one)
    tries = list(zip(*by_budget.values(), strict=False))
    seeds = min((len(one.runs) for networks in tries for one in networks), default=0)
    return [
        float(np.mean([_area(networks, seed, most_macs, worst) for networks in tries]))
        for seed in range(seeds)
    ]


def _area(networks: Sequence[Retrained], seed: int, most_macs: int, worst: float) -> float:
    points = [
        Candidate("", {}, one.network.cost.macs, 1 - one.values("val_top1")[seed])
        for one in networks
    ]
    return 100 * Front.of(points).hypervolume((most_macs, worst)) / most_macs


def hypervolume_words(data: ReportData) -> str | None:
    """The hypervolumes in a sentence; None where nothing was searched and trained."""
    found = hypervolumes(data)
    if SEARCHED not in found or len(found) == 1:
        return None
    names = {SEARCHED: "searched"} | BASELINES
    parts = [
        f"{names[role]} {area:.2f}" + ("" if half is None else f" ± {half:.2f}")
        for role, (area, half) in found.items()
    ]
    return (
        "Hypervolume, in points of top-1 over the most that any training misses, averaged over "
        f"MACs up to vanilla’s (± half of a 95 % interval over seeds): {'; '.join(parts)}."
    )
