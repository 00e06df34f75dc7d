"""What of a report is to be distrusted, in sentences; plain text that the page escapes."""

from collections.abc import Iterator

from octnas.report.compare import BASELINES, expected_controls
from octnas.report.data import ReportData
from octnas.report.formats import format_percent, plural
from octnas.results import SEARCHED

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
