"""What was found, in sentences; plain text that the page escapes."""

from dataclasses import dataclass

from octnas.costs import Budget
from octnas.front import Candidate
from octnas.looks import LOOKS
from octnas.report.compare import (
    BASELINES,
    cheaper_words,
    compare,
    expected_controls,
    judge,
    top1,
    vanilla_words,
)
from octnas.report.data import ReportData
from octnas.report.formats import (
    format_loss,
    format_macs,
    format_percent,
    format_top1,
    plural,
)
from octnas.results import SEARCHED
from octnas.verdict import Verdict

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def story(data: ReportData, budget: Budget) -> Story:
    """What was found at one budget."""
    bound = _bound(data, budget)
    comparisons = [
        comparison for role in BASELINES if (comparison := compare(data, budget, role)) is not None
    ]
    return Story(
        title=budget.name,
        bound=bound,
        found=_found(data, budget),
        judged=tuple((one.verdict, judge(one)) for one in comparisons),
        outlook=_outlook(data, budget, {one.role for one in comparisons}),
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
        f"There is no retrained network with {BASELINES[role]} to compare with."
        for role in expected_controls(data)
        if role not in compared
    ]
    sentences += filter(None, [cheaper_words(data, budget), vanilla_words(data)])
    return tuple(sentences)


def looks_words(data: ReportData) -> str:
    """How often the val images were looked at, and what for."""
    trained, exported = (data.val_looks.get(why, 0) for why in LOOKS)
    return (
        f"The val images were looked at {plural(trained, 'time')} for a training, once at each "
        f"size of images that it was tried at, and {plural(exported, 'time')} for an export, "
        "looks of stages that were done again among them."
    )
