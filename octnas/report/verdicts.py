"""Searched networks against baselines: what can be claimed, and the sentences that claim it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octnas.report.data import ReportData
from octnas.report.style import (
    BASELINES,
    MINUS,
    format_bytes,
    format_count,
    format_percent,
    format_points,
    format_top1,
    plural,
)
from octnas.results.front import Candidate, Front
from octnas.results.networks import (
    INCREASING,
    ORIGINAL,
    SEARCHED,
    UNIFORM,
    VANILLA,
    Retrained,
)
from octnas.results.verdict import POWER, Difference, Matrix, Verdict, difference, mean_interval
from octnas.space.costs import Budget
from octnas.space.peak import peak_of

LEVEL = 0.05
"""The probability, over all budgets together, of calling a difference real that is not."""

FEWER = 0.1
"""The share of MACs by which a network must be smaller to count as such."""

METHOD = (
    "How networks are compared: by top-1, over seeds and images. The standard error accounts for "
    "other seeds (√(s₁²/n₁ + s₂²/n₂), Welch’s t) and other images of the same kind; the 95 % "
    "intervals hold for all budgets jointly (Bonferroni), for each baseline separately. A network "
    "counts as better or worse only if its interval excludes 0; otherwise the difference is "
    "smaller than the noise. “Detectable” is the difference that such a comparison finds with a "
    f"probability of {POWER:.0%}. Another search may find another network. ± is the standard "
    "deviation over seeds."
)


@dataclass(frozen=True)
class Comparison:
    """The searched network of a budget against baselines of one role, which count by their mean."""

    role: str
    baselines: tuple[Retrained, ...]
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        """What can be claimed."""
        return self.difference.verdict


def comparisons(data: ReportData, budget: Budget) -> list[Comparison]:
    """The searched network of a budget against each kind of baseline that was retrained."""
    searched = data.find(SEARCHED, budget.name)
    if searched is None:
        return []
    return [
        Comparison(role, baselines, between(data, searched, baselines))
        for role in BASELINES
        if (baselines := data.of_role(role, budget.name))
    ]


def between(data: ReportData, one: Retrained, others: tuple[Retrained, ...]) -> Difference:
    """The difference of a network to another one, or to the mean of several."""
    first, second = _matrices(data, one, others)
    found = difference(first, second, 1 - LEVEL / max(1, len(data.budgets)))
    if others[0].network.architecture.id == one.network.architecture.id:
        return Difference(found.points, None, None, Verdict.SAME)
    return found


def _matrices(
    data: ReportData, one: Retrained, others: tuple[Retrained, ...]
) -> tuple[Matrix, Matrix]:
    """The arguments of `difference`; by image where that is known of all networks."""
    networks = (one, *others)
    matrices = [np.array(network.values("val_top1"))[:, None] for network in networks]
    found = [data.correct.get(network.network.architecture.id) for network in networks]
    by_image = [matrix for matrix in found if matrix is not None]
    if len(by_image) == len(networks) and len({matrix.shape[1] for matrix in by_image}) == 1:
        matrices = by_image
    first, *rest = matrices
    if len(rest) == 1:
        return first, rest[0]
    return first, np.stack([matrix.mean(axis=0) for matrix in rest])


def savings(data: ReportData) -> tuple[str, ...]:
    """For each budget, what is saved of the original's costs, and what is left of its accuracy."""
    found = [] if data.original is None else [_saved(data, budget) for budget in data.budgets]
    return tuple(filter(None, found))


def _saved(data: ReportData, budget: Budget) -> str:
    """Such as ``"1.528 M MACs instead of 3.052 M (−49.9 %), 57.8 % top-1 against …"``."""
    searched, original = data.find(SEARCHED, budget.name), data.original
    if searched is None or original is None:
        return ""
    own, full = searched.network.cost, original.network.cost
    costs = [_less(own.macs, full.macs, format_count, " MACs")]
    for bound in budget.bounds:
        if bound.cost == "activation":
            sizes = (own.activation_bytes, full.activation_bytes)
            costs.append(_less(*sizes, format_bytes, " of activations"))
        elif bound.cost == "peak":
            peak = peak_of(data.space)
            sizes = (peak.of(searched.network.architecture.alphas), peak.vanilla)
            costs.append(_less(*sizes, format_bytes, " of memory at the peak"))
    name = f"{budget.name}: " if len(data.budgets) > 1 else ""
    return (
        f"{name}{', '.join(costs)}, {top1(searched)} top-1 against {data.reference}’s "
        f"{top1(original)}."
    )


def _less(own: float, full: float, form: Callable[[float], str], what: str) -> str:
    """A cost instead of another one, and by how much they differ."""
    sign = MINUS if own <= full else "+"
    share = format_percent(abs(1 - own / full))
    return f"{form(own)}{what} instead of {form(full)} ({sign}{share})"


def headline(data: ReportData) -> tuple[str, ...]:
    """What was saved, whether the search won, and a sentence for each kind of baseline."""
    by_budget = {budget.name: comparisons(data, budget) for budget in data.budgets}
    found = [one for several in by_budget.values() for one in several]
    sentences = []
    for role, words in BASELINES.items():
        verdicts = Counter(one.verdict for one in found if one.role == role)
        if total := verdicts.total():
            counts = [
                f"{_verdict_words(verdict)} at {verdicts[verdict]} of {plural(total, 'budget')}"
                for verdict in Verdict
                if verdicts[verdict]
            ]
            sentences.append(f"Searched against {words}: {'; '.join(counts)}.")
    by_verdict = {name: {one.verdict for one in several} for name, several in by_budget.items()}
    verdict = (_whether_it_won(by_verdict), *sentences) if sentences else ()
    return (*savings(data), *verdict)


def _whether_it_won(by_budget: dict[str, set[Verdict]]) -> str:
    """The first line of a report, or the first after what was saved."""
    decided = {Verdict.BETTER, Verdict.WORSE, Verdict.NOISE}
    compared = {name: verdicts for name, verdicts in by_budget.items() if verdicts & decided}
    if not compared:
        return "No verdict on the search: the noise of training is unknown."
    won = [name for name, verdicts in compared.items() if verdicts == {Verdict.BETTER}]
    if won:
        share = f"{len(won)} of {plural(len(compared), 'budget')} ({', '.join(won)})"
        return f"The search won at {share}: better than every baseline trained there."
    return "The search did not win: at no budget did it beat every baseline."


def comparison_words(comparison: Comparison) -> str:
    """A comparison in a sentence, which says so when the searched network did not win."""
    found, against = comparison.difference, BASELINES[comparison.role]
    points = format_points(found.points)
    baseline = f"{against} ({_described(comparison.baselines)})"
    match found.verdict:
        case Verdict.BETTER:
            said = f"Better than {baseline}: {points} points"
        case Verdict.WORSE:
            said = f"Did not win: worse than {baseline}, {points} points"
        case Verdict.NOISE:
            said = f"Did not win: {points} points against {baseline}, smaller than the noise"
        case Verdict.ONE_SEED:
            return f"{points} points against {baseline}; no verdict with a single seed."
        case Verdict.NO_SPREAD:
            return (
                f"{points} points against {baseline}; all seeds agree, so the noise is unknown: "
                "no verdict."
            )
        case Verdict.SAME:
            return f"The search chose the network with {against} itself: nothing to compare."
    return f"{said} ({_interval(found)})."


def _described(baselines: tuple[Retrained, ...]) -> str:
    if len(baselines) == 1:
        return described(baselines[0])
    top1 = float(np.mean([one.mean("val_top1") for one in baselines]))
    macs = float(np.mean([one.network.cost.macs for one in baselines]))
    return f"mean of {len(baselines)}: {format_top1(100 * top1)} %, {format_count(macs)} MACs"


def described(retrained: Retrained) -> str:
    """Such as ``"81.8 ± 0.4 %, 3 seeds, 1.339 M MACs"``."""
    macs = f"{format_count(retrained.network.cost.macs)} MACs"
    if retrained.network.role == ORIGINAL:
        return f"{top1(retrained)}, {macs}"
    return f"{top1(retrained)}, {plural(len(retrained.runs), 'seed')}, {macs}"


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


def _verdict_words(verdict: Verdict) -> str:
    return {
        Verdict.NOISE: "no difference beyond the noise",
        Verdict.ONE_SEED: "no verdict with a single seed",
        Verdict.NO_SPREAD: "no verdict without any spread over seeds",
        Verdict.SAME: "the same network",
    }.get(verdict, verdict.value)


def fewer_macs_words(data: ReportData, budget: Budget) -> str | None:
    """The searched network against the smallest uniform one with at least `FEWER` more MACs.

    None where one of them was not trained.
    """
    searched = data.find(SEARCHED, budget.name)
    if searched is None:
        return None
    macs = searched.network.cost.macs
    uniform = data.of_role(UNIFORM)
    larger = [one for one in uniform if macs <= (1 - FEWER) * one.network.cost.macs]
    if not larger:
        return None
    other = min(larger, key=lambda one: one.network.cost.macs)
    found = between(data, searched, (other,))
    interval = "" if found.half_width is None else f" ({_interval(found)})"
    return (
        f"With {format_percent(1 - macs / other.network.cost.macs)} fewer MACs than "
        f"{other.network.name}: {format_points(found.points)} points{interval}."
    )


def expected_baselines(data: ReportData) -> tuple[str, ...]:
    """Roles that a searched network should be compared with: two, and those of the settings."""
    return tuple(role for role in BASELINES if role in (UNIFORM, INCREASING, *data.baselines))


def vanilla_words(data: ReportData) -> str | None:
    """The vanilla network, for scale; None where it was not trained."""
    if (vanilla := data.find(VANILLA)) is None:
        return None
    what = ""
    if data.start == "the original":
        what = "the original fine-tuned as long, without octaves"
    return f"For scale, vanilla ({what or 'α = 0 everywhere'}): {described(vanilla)}."


def original_words(data: ReportData) -> str | None:
    """The network that the run began with, as it came; None where there is none."""
    if data.original is None:
        return None
    name = data.reference[0].upper() + data.reference[1:]
    return f"{name} as it came: {described(data.original)}."


def hypervolumes(data: ReportData) -> dict[str, tuple[float, float | None]]:
    """By role, the area that its networks dominate, with half of its 95 % interval over seeds.

    MACs, as a share of the vanilla network's, times points of top-1 error: up to vanilla's MACs and
    the largest error of any training. The vanilla network counts for no role.
    """
    errors = [1 - value for one in data.retrained for value in one.values("val_top1")]
    worst = max(errors, default=1)
    found = {}
    for role in (SEARCHED, *BASELINES):
        if areas := areas_by_seed(data.of_role(role), data.space.vanilla_macs, worst):
            found[role] = mean_interval(areas)
    return found


def areas_by_seed(networks: Sequence[Retrained], most_macs: int, worst: float) -> list[float]:
    """For each seed, the area that the networks of a role dominate, in points of top-1.

    It extends up to ``most_macs``, of which areas are shares, and the ``worst`` error (0 to 1).
    Several networks of a budget, with numbers, are equally good tries: the mean of their areas
    counts, not the area of the best.
    """
    by_budget: dict[str, list[Retrained]] = {}
    for one in networks:
        by_budget.setdefault(one.network.budget, []).append(one)
    tries = list(zip(*by_budget.values(), strict=False))
    seeds = min((len(one.runs) for several in tries for one in several), default=0)
    return [
        float(np.mean([_area(several, seed, most_macs, worst) for several in tries]))
        for seed in range(seeds)
    ]


def _area(networks: Sequence[Retrained], seed: int, most_macs: int, worst: float) -> float:
    points = [
        Candidate("", {}, one.network.cost.macs, 1 - one.values("val_top1")[seed])
        for one in networks
    ]
    return 100 * Front.of(points).hypervolume((most_macs, worst)) / most_macs


def hypervolume_words(data: ReportData) -> str | None:
    """The hypervolumes in a sentence; None without a searched network and a baseline."""
    found = hypervolumes(data)
    if SEARCHED not in found or len(found) == 1:
        return None
    names = {SEARCHED: "searched"} | BASELINES
    parts = [
        f"{names[role]} {area:.2f}" + ("" if half is None else f" ± {half:.2f}")
        for role, (area, half) in found.items()
    ]
    return (
        "Hypervolume: points of top-1 above the worst training, averaged over MACs up to "
        f"vanilla’s (± half of a 95 % interval over seeds): {'; '.join(parts)}."
    )
