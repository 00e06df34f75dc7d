"""What was found, in sentences; plain text that the page escapes.

What of a report is to be distrusted, in sentences; plain text that the page escapes.

What stands below the figures and tables of the page.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from octnas.report.data import ReportData
from octnas.report.style import format_loss, format_macs, format_percent, format_top1, plural
from octnas.report.verdicts import (
    BASELINES,
    cheaper_words,
    compare,
    expected_controls,
    judge,
    top1,
    vanilla_words,
)
from octnas.results.front import Candidate
from octnas.results.networks import SEARCHED
from octnas.results.validation_log import LOOKS
from octnas.results.verdict import Verdict
from octnas.space.costs import Budget

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


FEW_SEEDS = 3
FEW_IMAGES = 1000
LOW_CEILING = 0.5


def distrust(data: ReportData) -> list[str]:
    """Sentences, each about one weakness that this run has; empty where none was found."""
    return [
        *_unfinished(data),
        *_of_trainings(data),
        *_of_ranking(data),
        *_of_images(data),
        *_of_latency(data),
    ]


def _unfinished(data: ReportData) -> Iterator[str]:
    if data.unfinished:
        stages = ", ".join(data.unfinished)
        yield f"The run is not finished ({stages}): what stands here is what there is so far."


def _of_trainings(data: ReportData) -> Iterator[str]:
    seeds = {len(one.runs) for one in data.retrained}
    if not seeds:
        yield "No network was retrained: the supernet’s scores rank, they are no accuracies."
        return
    if min(seeds) < FEW_SEEDS:
        few = sum(len(one.runs) < FEW_SEEDS for one in data.retrained)
        yield (
            f"Too few seeds: {few} of {plural(len(data.retrained), 'network')} were trained with "
            f"fewer than {FEW_SEEDS}. Their intervals are wide, and with one seed there are none."
        )
    if not data.correct:
        yield "Which images were right was not kept: intervals are over seeds alone."
    roles = {one.network.role for one in data.retrained}
    if SEARCHED in roles:
        for role in expected_controls(data):
            if role not in roles:
                yield f"Nothing was trained with {BASELINES[role]} to hold the search against."
    yield from _cheaper_controls(data)


def _cheaper_controls(data: ReportData) -> Iterator[str]:
    """Only where a budget does not bound MACs may a control have fewer than what was searched."""
    for one in data.retrained:
        searched = data.find(SEARCHED, one.network.budget)
        if one.network.role not in BASELINES or searched is None:
            continue
        share = one.network.cost.macs / searched.network.cost.macs
        if share < 1:
            yield (
                f"{one.network.name}: {format_percent(1 - share)} fewer MACs than the searched "
                "network, since the budget does not bound MACs: a loss to it says less."
            )


def _of_ranking(data: ReportData) -> Iterator[str]:
    if not data.rankings:
        yield "Whether the supernet ranks was not checked; `octnas rank` does."
        return
    for source, ranking in data.rankings.items():
        ceiling, gain = ranking.statistics.get("ceiling"), ranking.statistics.get("gain")
        if ceiling is None or ceiling.value is None:
            yield f"The noise ceiling of the ranking check ({source}) is unknown: one seed."
        elif ceiling.value < LOW_CEILING:
            yield (
                f"Low noise ceiling ({source}): the ground truth agrees with itself with a τ of "
                f"{ceiling.value:.2f} only, so that little can be said of any score."
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
    if not known and any(one.predicted for one in data.latencies):
        yield (
            "Latency was predicted from a table and not measured; "
            f"`octnas latency networks {data.run}` measures it."
        )
    elif not known:
        yield (
            "Latency was not measured, and MACs are not time; "
            f"`octnas latency networks {data.run}` measures it."
        )
    elif missing := networks.difference(known):
        yield f"Latency was not measured of {plural(len(missing), 'retrained network')}."


FRONT_CAPTION = (
    "Each point is one architecture, scored with the supernet’s weights. The stepped line is the "
    "front: at these MACs, nothing scored was better. Rings mark what was chosen for the budgets "
    "(dashed). Supernet scores rank; they are not the accuracy of a network trained on its own. "
    "Clicking a point selects its network."
)
RETRAINED_CAPTION = (
    "Mean over seeds; bars are one standard deviation. MACs are not time: measure the latency "
    "before choosing. Clicking a point selects its network."
)
PICK_CAPTION = (
    "Of what the search found, the supernet’s score decides which network is looked at, so that "
    "the val images judge it and do not choose it. It is recommended if it is better than every "
    "other network within the limit, beyond the noise."
)
EFFECT_CAPTION = (
    "Cells: channels at half resolution. Sensitivity: by how much the supernet’s loss grows where "
    "the site goes from its smallest α to its largest, the others as they were in the search’s "
    "candidates, by the model of all scores (± its standard deviation). Above: MACs by stage."
)
NETWORKS_CAPTION = (
    "A name selects its network; a phone shows all of the selected ones. "
    "± is the standard deviation over seeds; that of a difference to uniform α is half of its "
    "interval, for all budgets at once with 95 %. Latency is of the network alone, with random "
    "weights. Classes: accuracy against vanilla, in points, without regard to noise, so that of "
    "many classes some lose by chance."
)
HYPERVOLUME_CAPTION = (
    "The area that the front dominates, up to the MACs of the largest budget and the loss of a "
    "guess among all classes. Where it has stopped increasing, more trials would find little."
)
TRAINING_CAPTION = (
    "Mean over seeds. The supernet’s loss is over whatever subnets each step drew, so only its "
    "course compares with the others."
)
TIMES_CAPTION = (
    "Hours of all processes together, interruptions left out. On CPUs, times the threads they are "
    "CPU-hours; with a GPU for each process they are GPU-hours."
)
