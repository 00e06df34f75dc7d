"""What was found, in sentences; plain text that the page escapes."""

from collections import Counter
from dataclasses import dataclass

from octnas.costs import Budget
from octnas.front import Candidate
from octnas.report.compare import Comparison, Verdict, compare
from octnas.report.data import ReportData
from octnas.report.formats import (
    format_loss,
    format_macs,
    format_percent,
    format_points,
    format_top1,
    plural,
)
from octnas.results import GROWING, SEARCHED, UNIFORM, VANILLA, Retrained

BASELINES = {UNIFORM: "uniform α", GROWING: "α growing with depth"}

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

METHOD = (
    "How differences are judged: top-1 over seeds, with Welch’s t interval of 95 % (standard error "
    "√(s₁²/n₁ + s₂²/n₂)). A network counts as better or worse only if the interval excludes 0; "
    "otherwise the difference is called smaller than the noise. The interval covers the noise of "
    "training with another seed, not that of other images or of another search, and every "
    "comparison is judged on its own: of twenty without any real difference, one is expected to "
    "look like one. ± is the standard deviation over seeds."
)


@dataclass(frozen=True)
class Story:
    """What was found at one budget.

    Attributes:
        title: the budget's name.
        bound: what the budget allows.
        found: sentences about the chosen architecture and its retraining.
        judged: against each baseline, what may be said, and how it is said.
        outlook: sentences about the vanilla network and what is missing.
    """

    title: str
    bound: str
    found: tuple[str, ...]
    judged: tuple[tuple[Verdict, str], ...]
    outlook: tuple[str, ...]


def searched_what(data: ReportData) -> str:
    """The space and how much of it was looked at."""
    space = data.space
    size = " × ".join(map(str, space.input_size))
    free, fixed = len(space.searchable), len(space.sites) - len(space.searchable)
    where = plural(free, "site") + (f" ({fixed:,} more are fixed)" if fixed else "")
    what = (
        f"The share α of channels kept at half resolution was searched at {where} of "
        f"{space.backbone} for images of {size}: {format_size(space.size)} architectures."
    )
    seen = f" {plural(len(data.candidates), 'architecture')} of these were scored in one supernet"
    trained = f" trained for {plural(len(data.supernet_history), 'epoch')}"
    seen += trained if data.supernet_history else ""
    return f"{what}{seen}; {plural(len(data.front.candidates), 'architecture')} form the front."


def format_size(size: int) -> str:
    """How many architectures: in full, or from a thousand million on as a power of ten."""
    if size < 10**9:
        return f"{size:,}"
    mantissa, exponent = f"{size:.2e}".split("e+")
    return f"{mantissa} · 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def headline(data: ReportData) -> tuple[str, ...]:
    """One sentence for each kind of baseline, over all budgets."""
    sentences: list[str] = []
    for role, words in BASELINES.items():
        verdicts = Counter(
            comparison.verdict
            for budget in data.budgets
            if (comparison := _comparison(data, budget, role)) is not None
        )
        total = sum(verdicts.values())
        if total:
            counts = [
                f"{_verdict_words(verdict)} at {verdicts[verdict]} of {plural(total, 'budget')}"
                for verdict in Verdict
                if verdicts[verdict]
            ]
            sentences.append(f"Searched against {words}: {'; '.join(counts)}.")
    return tuple(sentences)


def story(data: ReportData, budget: Budget) -> Story:
    """What was found at one budget."""
    bound = _bound(data, budget)
    comparisons = [
        (role, comparison)
        for role in BASELINES
        if (comparison := _comparison(data, budget, role)) is not None
    ]
    return Story(
        title=budget.name,
        bound=bound,
        found=_found(data, budget),
        judged=tuple((one.verdict, judge(one, BASELINES[role])) for role, one in comparisons),
        outlook=_outlook(data, budget, {role for role, _ in comparisons}),
    )


def _bound(data: ReportData, budget: Budget) -> str:
    """What a budget allows."""
    if (other := budget.bound) is not None:
        unit = "MB of activations" if other.cost == "activation" else "ms, predicted"
        words = f"at most {other.upper / 1e6:,.3f} {unit}"
        return words + (f", at least {other.lower / 1e6:,.3f}" if other.lower else "")
    words = f"at most {format_macs(budget.max_macs)} MACs"
    words += f" ({format_percent(data.share(budget.max_macs))} of vanilla)"
    if budget.min_macs:
        words += f", at least {format_macs(budget.min_macs)} MACs"
    return words


def judge(comparison: Comparison, against: str) -> str:
    """A comparison in a sentence, which says so when the searched network did not win."""
    points = format_points(comparison.points)
    baseline = f"{against} ({described(comparison.baseline)})"
    match comparison.verdict:
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
    return f"{said} ({_interval(comparison)})."


def top1(retrained: Retrained) -> str:
    """Top-1 on the val part: ``"81.8 ± 0.4 %"``."""
    std = retrained.std("val_top1")
    value = format_top1(100 * retrained.mean("val_top1"), None if std is None else 100 * std)
    return f"{value} %"


def described(retrained: Retrained) -> str:
    """Such as ``"81.8 ± 0.4 %, 3 seeds, 1.339 M MACs"``."""
    seeds = plural(len(retrained.runs), "seed")
    return f"{top1(retrained)}, {seeds}, {format_macs(retrained.network.cost.macs)} MACs"


def _found(data: ReportData, budget: Budget) -> tuple[str, ...]:
    sentences: list[str] = []
    if candidate := data.chosen.get(budget.name):
        sentences.append(_chosen(data, candidate))
    else:
        sentences.append("No architecture was chosen for this budget.")
    if searched := data.find(SEARCHED, budget.name):
        epochs = sorted({len(run.history) for run in searched.runs} - {0})
        length = f" for {'–'.join(map(str, epochs))} epochs" if epochs else ""
        over = plural(len(searched.runs), "seed")
        sentences.append(
            f"Trained on its own{length}, it reaches {top1(searched)} top-1 over {over}."
        )
    return tuple(sentences)


def _chosen(data: ReportData, candidate: Candidate) -> str:
    said = (
        f"Architecture {candidate.id} was chosen: {format_macs(candidate.macs)} MACs, "
        f"{format_percent(data.share(candidate.macs))} of vanilla."
    )
    if "read_loss" not in candidate.metrics:
        return f"{said} Supernet loss {format_loss(candidate.loss)} where it was ranked."
    read = f"{format_loss(candidate.metrics['read_loss'])}"
    if "read_top1" in candidate.metrics:
        read += f" ({format_top1(100 * candidate.metrics['read_top1'])} % top-1)"
    return (
        f"{said} In the supernet its loss is {format_loss(candidate.loss)} on the images it was "
        f"ranked on, and {read} on other images."
    )


def _outlook(data: ReportData, budget: Budget, compared: set[str]) -> tuple[str, ...]:
    if data.find(SEARCHED, budget.name) is None:
        return ("Not retrained yet: nothing can be said of how well it does on its own.",)
    sentences = [
        f"There is no retrained network with {words} to compare with."
        for role, words in BASELINES.items()
        if role not in compared
    ]
    if vanilla := data.find(VANILLA):
        sentences.append(f"For scale, vanilla (α = 0 everywhere): {described(vanilla)}.")
    return tuple(sentences)


def _comparison(data: ReportData, budget: Budget, role: str) -> Comparison | None:
    searched, baseline = data.find(SEARCHED, budget.name), data.find(role, budget.name)
    return compare(searched, baseline) if searched and baseline else None


def _interval(comparison: Comparison) -> str:
    half_width = comparison.half_width or 0.0
    low, high = (format_points(comparison.points + sign * half_width) for sign in (-1, 1))
    return f"95 % interval {low} to {high}"


def _verdict_words(verdict: Verdict) -> str:
    return {
        Verdict.NOISE: "no difference beyond the noise",
        Verdict.ONE_SEED: "no statement is possible with one seed",
        Verdict.NO_SPREAD: "no statement is possible without any spread over seeds",
        Verdict.SAME: "the same network",
    }.get(verdict, verdict.value)
