"""Findings and caveats as sentences; plain text, with commands in backticks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octnas.report.data import ReportData
from octnas.report.style import (
    BASELINES,
    format_count,
    format_loss,
    format_percent,
    format_top1,
    plural,
)
from octnas.report.tables import retrained_rows
from octnas.report.verdicts import (
    METHOD,
    comparison_words,
    comparisons,
    expected_baselines,
    fewer_macs_words,
    headline,
    hypervolume_words,
    original_words,
    top1,
    vanilla_words,
)
from octnas.results.front import Candidate
from octnas.results.networks import SEARCHED
from octnas.results.validation_log import PURPOSES
from octnas.results.verdict import Verdict
from octnas.space.costs import Bound, Budget

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
FEW_SEEDS = 3
FEW_IMAGES = 1000
LOW_CEILING = 0.5


@dataclass(frozen=True)
class Story:
    """What was found at one budget, in sentences."""

    title: str
    bound: str
    found: tuple[str, ...]
    verdicts: tuple[tuple[Verdict, str], ...]  # for each kind of baseline
    outlook: tuple[str, ...]  # the vanilla network, and what is missing


def searched_what(data: ReportData) -> str:
    """The search space, and how much of it was evaluated."""
    space = data.space
    size = " × ".join(map(str, space.input_size))
    free, fixed = len(space.searchable), len(space.sites) - len(space.searchable)
    where = plural(free, "site") + (f" (plus {plural(fixed, 'fixed site')})" if fixed else "")
    epochs = len(data.supernet_history)
    trained = f" trained for {plural(epochs, 'epoch')}" if epochs else ""
    scored = f"in one supernet{trained}"
    if data.converted:
        scored = "with the weights of the original, converted for each of them"
    return (
        f"The share α of channels at half resolution was searched at {where} of "
        f"{space.backbone} for images of {size}: {format_size(space.size)} architectures. "
        f"{plural(len(data.candidates), 'architecture')} of these were scored "
        f"{scored}; {plural(len(data.front.candidates), 'architecture')} form the front."
    )


def format_size(size: int) -> str:
    """A number of architectures: in full, or from a billion on as a power of ten."""
    if size < 10**9:
        return f"{size:,}"
    mantissa, exponent = f"{size:.2e}".split("e+")
    return f"{mantissa} · 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def context(data: ReportData) -> dict[str, Any]:
    """What the templates of the page and of ``report.md`` have in common."""
    return {
        "data": data,
        "headline": headline(data),
        "searched_what": searched_what(data),
        "stories": [story(data, budget) for budget in data.budgets],
        "caveats": caveats(data),
        "rows": retrained_rows(data),
        "hypervolumes": hypervolume_words(data),
        "method": METHOD,
        "validations": validation_words(data),
    }


def story(data: ReportData, budget: Budget) -> Story:
    """What was found at one budget."""
    compared = comparisons(data, budget)
    return Story(
        title=budget.name,
        bound=_bound(data, budget),
        found=tuple(_found(data, budget)),
        verdicts=tuple((one.verdict, comparison_words(one)) for one in compared),
        outlook=tuple(_outlook(data, budget, {one.role for one in compared})),
    )


_UNITS = {
    "activation": "MB of activations",
    "peak": "MB of memory at the peak",
    "latency": "ms, predicted",
}


def _bound(data: ReportData, budget: Budget) -> str:
    return ", ".join(_bound_words(data, one) for one in budget.bounds)


def _bound_words(data: ReportData, bound: Bound) -> str:
    if bound.cost != "macs":
        words = f"at most {bound.upper / 1e6:,.3f} {_UNITS[bound.cost]}"
        return words + (f", at least {bound.lower / 1e6:,.3f}" if bound.lower else "")
    words = f"at most {format_count(bound.upper)} MACs"
    words += f" ({format_percent(data.share(bound.upper))} of vanilla)"
    return words + (f", at least {format_count(bound.lower)} MACs" if bound.lower else "")


def _found(data: ReportData, budget: Budget) -> Iterator[str]:
    if candidate := data.chosen.get(budget.name):
        yield _chosen(data, candidate)
    else:
        yield "No architecture was chosen for this budget."
    if searched := data.find(SEARCHED, budget.name):
        epochs = sorted({len(run.history) for run in searched.runs} - {0})
        several = [*map(str, epochs[:-1]), *(plural(last, "epoch") for last in epochs[-1:])]
        length = f" for {'–'.join(several)}" if several else ""
        seeds = plural(len(searched.runs), "seed")
        how = "Trained on its own" if data.start == "scratch" else "Fine-tuned"
        yield f"{how}{length}, it reaches {top1(searched)} top-1 over {seeds}."


def _chosen(data: ReportData, one: Candidate) -> str:
    said = (
        f"Architecture {one.id} was chosen: {format_count(one.macs)} MACs, "
        f"{format_percent(data.share(one.macs))} of vanilla. Its {data.measure} in the "
        f"{data.scorer} is {format_loss(one.loss)} on the images used for ranking"
    )
    if "read_loss" not in one.metrics:
        return f"{said}."
    read = format_loss(one.metrics["read_loss"])
    if "read_top1" in one.metrics:
        read += f" ({format_top1(100 * one.metrics['read_top1'])} % top-1)"
    return f"{said}, and {read} on other images."


def _outlook(data: ReportData, budget: Budget, compared: set[str]) -> Iterator[str]:
    if data.find(SEARCHED, budget.name) is None:
        yield "Not retrained yet: how well it does on its own is unknown."
        return
    for role in expected_baselines(data):
        if role not in compared:
            yield f"No baseline with {BASELINES[role]} was retrained at this budget."
    words = (fewer_macs_words(data, budget), original_words(data), vanilla_words(data))
    yield from filter(None, words)


def validation_words(data: ReportData) -> str:
    """How often networks were evaluated on the val images, and why."""
    trained, exported = (data.validations.get(purpose, 0) for purpose in PURPOSES)
    return (
        f"Validation log: {plural(trained, 'evaluation')} on the val images after training (one "
        f"for each size of test images) and {plural(exported, 'evaluation')} for exports, "
        "including those of stages that were run again."
    )


def caveats(data: ReportData) -> list[str]:
    """Sentences, each about one weakness of this run."""
    return [
        *_unfinished(data),
        *_of_trainings(data),
        *_of_ranking(data),
        *_of_images(data),
        *_of_latency(data),
    ]


def _unfinished(data: ReportData) -> Iterator[str]:
    if data.unfinished:
        yield f"The run is not finished ({', '.join(data.unfinished)}): results are preliminary."


def _of_trainings(data: ReportData) -> Iterator[str]:
    if not data.retrained:
        yield "No network was retrained: scores rank networks; they are not accuracies."
        return
    if few := sum(len(one.runs) < FEW_SEEDS for one in data.retrained):
        yield (
            f"Few seeds: {few} of {plural(len(data.retrained), 'network')} have fewer than "
            f"{FEW_SEEDS}. Their intervals are wide; with one seed there is none."
        )
    if not data.correct:
        yield "Per-image results were not kept: intervals cover seeds only."
    roles = {one.network.role for one in data.retrained}
    if SEARCHED in roles:
        for role in expected_baselines(data):
            if role not in roles:
                yield f"There is no baseline with {BASELINES[role]}."
    yield from _smaller_baselines(data)


def _smaller_baselines(data: ReportData) -> Iterator[str]:
    """Where a budget bounds other costs, a baseline can have fewer MACs than the searched one."""
    for one in data.retrained:
        searched = data.find(SEARCHED, one.network.budget)
        if one.network.role not in BASELINES or searched is None:
            continue
        share = one.network.cost.macs / searched.network.cost.macs
        if share < 1:
            yield (
                f"{one.network.name}: {format_percent(1 - share)} fewer MACs than the searched "
                "network, since the budget bounds other costs; the searched one has an advantage."
            )


def _of_ranking(data: ReportData) -> Iterator[str]:
    if not data.rankings:
        yield "Ranking was not checked; `octnas rank` does that."
    for source, ranking in data.rankings.items():
        ceiling, gain = ranking.statistics.get("ceiling"), ranking.statistics.get("gain")
        if ceiling is None or ceiling.value is None:
            yield f"Ranking check ({source}): the noise ceiling is unknown with a single seed."
        elif ceiling.value < LOW_CEILING:
            yield (
                f"Low noise ceiling ({source}): the ground truth agrees with itself with a τ of "
                f"only {ceiling.value:.2f}, so no score can be evaluated well."
            )
        if gain is not None and gain.low is not None and gain.low <= 0:
            yield f"The scores of {source} are not shown to rank better than MACs alone."


def _of_images(data: ReportData) -> Iterator[str]:
    if data.skipped:
        yield f"{data.skipped:,} images and folders were skipped; see data/problems.txt."
    images = next((matrix.shape[1] for matrix in data.correct.values()), None)
    if images is not None and images < FEW_IMAGES:
        yield f"The val part has {plural(images, 'image')}: each is {100 / images:.2f} points."


def _of_latency(data: ReportData) -> Iterator[str]:
    known = [identity for one in data.latencies for identity in one.measured]
    networks = {one.network.architecture.id for one in data.retrained}
    measure = f"`octnas latency networks {data.run}` measures it."
    if not known and any(one.predicted for one in data.latencies):
        yield f"Latency was predicted from a table, not measured; {measure}"
    elif not known:
        yield f"Latency was not measured, and MACs are not time; {measure}"
    elif missing := networks.difference(known):
        yield f"The latency of {plural(len(missing), 'retrained network')} was not measured."
