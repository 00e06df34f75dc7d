"""Searched networks against their controls: what may be said, and how it is said.

The area that networks of a kind dominate, and how it is said.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octnas.report.data import ReportData
from octnas.report.style import format_macs, format_percent, format_points, format_top1, plural
from octnas.results.front import Candidate, Front
from octnas.results.networks import (
    INCREASING,
    NARROWER,
    PAPER,
    RANDOM,
    SEARCHED,
    SHALLOWER,
    SMALLER_IMAGES,
    UNIFORM,
    VANILLA,
    WORST,
    Retrained,
)
from octnas.results.verdict import POWER, Difference, Matrix, Verdict, difference, mean_interval
from octnas.space.costs import Budget

LEVEL = 0.05
"""Of all budgets together the probability to call one difference real that is none."""

BASELINES = {
    UNIFORM: "uniform α",
    PAPER: "the paper’s uniform α",
    INCREASING: "α increasing with depth",
    RANDOM: "random architectures",
    WORST: "the supernet’s worst",
    NARROWER: "a narrower plain network",
    SHALLOWER: "a shallower plain network",
    SMALLER_IMAGES: "the plain network on smaller images",
}

METHOD = (
    "How differences are judged: top-1 over seeds and images. The standard error is that of other "
    "seeds (√(s₁²/n₁ + s₂²/n₂), Student’s t by Welch) and of other images of the same kind; the "
    "intervals hold for all budgets at once with 95 % (Bonferroni), for each baseline on its own. "
    "A network counts as better or worse only if the interval excludes 0; otherwise the difference "
    "is called smaller than the noise. What such a comparison would have shown with a probability "
    f"of {POWER:.0%} is given as detectable. Another search may find another network. ± is the "
    "standard deviation over seeds."
)


@dataclass(frozen=True)
class Comparison:
    """The searched network of a budget against one kind of control.

    Attributes:
        role: of the control.
        controls: one network, or several of the same kind, of which the mean counts.
        difference: of the top-1.
    """

    role: str
    controls: tuple[Retrained, ...]
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        """What may be said."""
        return self.difference.verdict


def compare(data: ReportData, budget: Budget, role: str) -> Comparison | None:
    """Compare what was searched for a budget with a kind of control; None where one is missing."""
    searched = data.find(SEARCHED, budget.name)
    controls = tuple(
        one
        for one in data.retrained
        if (one.network.role, one.network.budget) == (role, budget.name)
    )
    if searched is None or not controls:
        return None
    return Comparison(role, controls, between(data, searched, controls))


def between(data: ReportData, one: Retrained, others: tuple[Retrained, ...]) -> Difference:
    """The difference of a network to another one, or to the mean of several."""
    first, second = _matrices(data, one, others)
    found = difference(first, second, 1 - LEVEL / max(1, len(data.budgets)))
    if others[0].network.architecture.id == one.network.architecture.id:
        return Difference(found.points, None, None, Verdict.SAME)
    return found


def _matrices(
    data: ReportData, searched: Retrained, controls: tuple[Retrained, ...]
) -> tuple[Matrix, Matrix]:
    """What `difference` takes; by image where that is known of all."""
    networks = (searched, *controls)
    found = [data.correct.get(one.network.architecture.id) for one in networks]
    matrices = [np.array(one.values("val_top1"))[:, None] for one in networks]
    by_image = [one for one in found if one is not None]
    if len(by_image) == len(networks) and len({one.shape[1] for one in by_image}) == 1:
        matrices = by_image
    first, *others = matrices
    if len(others) == 1:
        return first, others[0]
    return first, np.stack([one.mean(axis=0) for one in others])


def headline(data: ReportData) -> tuple[str, ...]:
    """Whether the search won, and a sentence for each kind of control, over all budgets."""
    sentences: list[str] = []
    for role, words in BASELINES.items():
        verdicts = Counter(
            comparison.verdict
            for budget in data.budgets
            if (comparison := compare(data, budget, role)) is not None
        )
        if total := sum(verdicts.values()):
            counts = [
                f"{verdict_words(verdict)} at {verdicts[verdict]} of {plural(total, 'budget')}"
                for verdict in Verdict
                if verdicts[verdict]
            ]
            sentences.append(f"Searched against {words}: {'; '.join(counts)}.")
    return (_whether_it_won(data), *sentences) if sentences else ()


def _whether_it_won(data: ReportData) -> str:
    """The first line of a report."""
    verdicts = {
        budget.name: [one.verdict for role in BASELINES if (one := compare(data, budget, role))]
        for budget in data.budgets
    }
    judged = {
        name: found
        for name, found in verdicts.items()
        if {Verdict.BETTER, Verdict.WORSE, Verdict.NOISE} & set(found)
    }
    if not judged:
        return "Whether the search won cannot be said: the noise of training is not known."
    won = [name for name, found in judged.items() if set(found) == {Verdict.BETTER}]
    if won:
        share = f"{len(won)} of {plural(len(judged), 'budget')} ({', '.join(won)})"
        return f"The search won at {share}: better there than every control that was trained."
    return "The search did not win: at no budget was it better than every control."


def judge(comparison: Comparison) -> str:
    """A comparison in a sentence, which says so when the searched network did not win."""
    found, against = comparison.difference, BASELINES[comparison.role]
    points = format_points(found.points)
    baseline = f"{against} ({_described(comparison.controls)})"
    match found.verdict:
        case Verdict.BETTER:
            said = f"Better than {baseline}: {points} points"
        case Verdict.WORSE:
            said = f"Did not win: worse than {baseline}, {points} points"
        case Verdict.NOISE:
            said = f"Did not win: {points} points against {baseline}, smaller than the noise"
        case Verdict.ONE_SEED:
            return f"{points} points against {baseline}; one seed: no statement is possible."
        case Verdict.NO_SPREAD:
            return (
                f"{points} points against {baseline}; no seed differs from another, so the noise "
                "is unknown: no statement is possible."
            )
        case Verdict.SAME:
            return f"The search chose the network with {against} itself: nothing to compare."
    return f"{said} ({_interval(found)})."


def _described(controls: tuple[Retrained, ...]) -> str:
    if len(controls) == 1:
        return described(controls[0])
    top1 = float(np.mean([one.mean("val_top1") for one in controls]))
    macs = float(np.mean([one.network.cost.macs for one in controls]))
    return f"mean of {len(controls)}: {format_top1(100 * top1, None)} %, {format_macs(macs)} MACs"


def described(retrained: Retrained) -> str:
    """Such as ``"81.8 ± 0.4 %, 3 seeds, 1.339 M MACs"``."""
    seeds = plural(len(retrained.runs), "seed")
    return f"{top1(retrained)}, {seeds}, {format_macs(retrained.network.cost.macs)} MACs"


def top1(retrained: Retrained) -> str:
    """Top-1 on the val part: ``"81.8 ± 0.4 %"``."""
    std = retrained.std("val_top1")
    value = format_top1(100 * retrained.mean("val_top1"), None if std is None else 100 * std)
    return f"{value} %"


def _interval(found: Difference) -> str:
    half_width = found.half_width or 0.0
    low, high = (format_points(found.points + sign * half_width) for sign in (-1, 1))
    detectable = format_points(found.detectable or 0.0).lstrip("+")
    return f"interval {low} to {high}, detectable {detectable}"


def verdict_words(verdict: Verdict) -> str:
    """A verdict within a sentence."""
    return {
        Verdict.NOISE: "no difference beyond the noise",
        Verdict.ONE_SEED: "no statement is possible with one seed",
        Verdict.NO_SPREAD: "no statement is possible without any spread over seeds",
        Verdict.SAME: "the same network",
    }.get(verdict, verdict.value)


FEWER = 0.1
"""The share of MACs from which on a network counts as cheaper than another."""


def cheaper_words(data: ReportData, budget: Budget) -> str | None:
    """The searched network against uniform α of the next budget with at least `FEWER` more MACs.

    None where one of them was not trained.
    """
    searched = data.find(SEARCHED, budget.name)
    if searched is None:
        return None
    macs = searched.network.cost.macs
    dearer = [
        one
        for one in data.retrained
        if one.network.role == UNIFORM and macs <= (1 - FEWER) * one.network.cost.macs
    ]
    if not dearer:
        return None
    other = min(dearer, key=lambda one: one.network.cost.macs)
    found = between(data, searched, (other,))
    sure = "" if found.half_width is None else f" ({_interval(found)})"
    return (
        f"With {format_percent(1 - macs / other.network.cost.macs)} fewer MACs than "
        f"{other.network.name}: {format_points(found.points)} points{sure}."
    )


def expected_controls(data: ReportData) -> tuple[str, ...]:
    """Roles that a searched network should be held against: those that were asked for, and two."""
    return tuple(role for role in BASELINES if role in (UNIFORM, INCREASING, *data.controls))


def vanilla_words(data: ReportData) -> str | None:
    """The vanilla network, for scale; None where it was not trained."""
    vanilla = data.find(VANILLA)
    return (
        None if vanilla is None else f"For scale, vanilla (α = 0 everywhere): {described(vanilla)}."
    )


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
