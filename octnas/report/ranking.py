"""The ranking check as a table of words and figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from octnas.io.files import write_text
from octnas.report.style import plural
from octnas.results.ranking import Interval, Ranking

COLUMNS = ("source", "figure", "value", "low", "high", "seed_std_points")
METHOD = (
    "How it is judged: τ is Kendall’s, the share of pairs that are ranked alike less that of pairs "
    "that are not. Intervals are of 95 %, over resampled architectures; they do not cover another "
    "training of the supernet. The noise ceiling is the τ between one half of the seeds and the "
    "other: the ground truth does not agree with itself better than that, and a score without any "
    "error would end somewhat above it. Regret is what the architecture of lowest loss has less "
    "than the best one inside the budget; the best is the best of noisy means, so that even a "
    "perfect score may have some."
)
# Rows of the table: a figure's name, and what it is.
_ROWS = (
    ("tau_loss", "τ of the loss"),
    ("tau_top1", "τ of the accuracy"),
    ("rho_loss", "Spearman’s ρ of the loss"),
    ("rho_top1", "Spearman’s ρ of the accuracy"),
    ("tau_macs", "τ of MACs alone"),
    ("gain", "τ of the loss less that of MACs"),
    ("partial_loss", "partial τ of the loss, MACs taken out"),
    ("partial_top1", "partial τ of the accuracy, MACs taken out"),
    ("slice_loss", "τ of the loss at nearly equal MACs"),
    ("slice_top1", "τ of the accuracy at nearly equal MACs"),
    ("slice_rho_loss", "Spearman’s ρ of the loss at nearly equal MACs"),
    ("slice_rho_top1", "Spearman’s ρ of the accuracy at nearly equal MACs"),
    ("ceiling", "noise ceiling: τ between halves of the seeds"),
    ("partial_ceiling", "noise ceiling of the partial τ"),
    ("slice_ceiling", "noise ceiling at nearly equal MACs"),
)


def ranking_rows(ranking: Ranking) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of every figure that there is."""
    found = [
        (words, _number(one.value), _interval(one))
        for name, words in _ROWS
        if (one := ranking.statistics.get(name)) is not None
    ]
    for regret in ranking.regrets:
        of = f"regret, {regret.budget} (of {plural(regret.architectures, 'architecture')})"
        ends = _interval(Interval(regret.points, regret.low, regret.high))
        noise = "" if regret.std is None else f"one seed’s std: {regret.std:.2f} points"
        notes = "; ".join(filter(None, (ends, noise)))
        found.append((of, f"{regret.points:.2f} points", notes))
    return found


def write_ranking_csv(rankings: Mapping[str, Ranking], path: Path) -> None:
    """Write every figure as CSV; numbers in full precision, None as an empty field.

    Columns: ``source`` of the scores, ``figure`` (a name of `octnas.results.ranking.statistics`, or
    ``regret_points/BUDGET``), ``value``, ``low`` and ``high`` of the 95 % interval, and for a
    regret the standard deviation over seeds of one training.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for source, ranking in rankings.items():
        for name, one in ranking.statistics.items():
            writer.writerow((source, name, one.value, one.low, one.high, None))
        for regret in ranking.regrets:
            name = f"regret_points/{regret.budget}"
            writer.writerow((source, name, regret.points, regret.low, regret.high, regret.std))
    write_text(path, text.getvalue())


def ranking_text(source: str, ranking: Ranking) -> str:
    """The table as plain text, with what it was made from."""
    rows = ranking_rows(ranking)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [_line(row, widths) for row in rows]
    return "\n".join(["", f"Scores of {source}: {ranking_basis(ranking)}", "", *lines])


def ranking_basis(ranking: Ranking) -> str:
    """What the check rests on, in a sentence."""
    seeds = len(ranking.architectures[0].truth)
    narrow = sum(one.narrow for one in ranking.architectures)
    return (
        f"{plural(len(ranking.architectures), 'architecture')}, {narrow} of them at nearly equal "
        f"MACs, trained from scratch with {plural(seeds, 'seed')} for "
        f"{plural(ranking.epochs, 'epoch')} each ({ranking.seconds['truth']:,.0f} s in all); "
        f"the score took {ranking.seconds['score']:,.0f} s, scoring "
        f"{ranking.seconds['scoring']:,.1f} s."
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, value, interval = row
    return f"{name:<{widths[0]}}  {value:>{widths[1]}}  {interval}".rstrip()


def _number(value: float | None) -> str:
    return "undefined" if value is None else _signed(value)


def _interval(one: Interval) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{_signed(one.low)} to {_signed(one.high)}"


def _signed(value: float) -> str:
    return f"{round(value, 2) or 0.0:.2f}"  # no -0.00
