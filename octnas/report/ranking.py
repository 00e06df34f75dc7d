"""The ranking check as a table: for the page, as CSV and as text."""

from collections.abc import Mapping
from pathlib import Path

from octnas.report.style import MINUS, NOT_COMPARED, plural
from octnas.report.tables import write_rows
from octnas.results.ranking import Interval, Ranking

COLUMNS = ("source", "figure", "value", "low", "high", "seed_std_points")
_ROWS = (
    ("tau_loss", "τ of the loss"),
    ("tau_top1", "τ of the accuracy"),
    ("rho_loss", "Spearman’s ρ of the loss"),
    ("rho_top1", "Spearman’s ρ of the accuracy"),
    ("tau_macs", "τ of MACs alone"),
    ("gain", "τ of the loss minus that of MACs"),
    ("partial_loss", "partial τ of the loss, controlling for MACs"),
    ("partial_top1", "partial τ of the accuracy, controlling for MACs"),
    ("slice_loss", "τ of the loss at nearly equal MACs"),
    ("slice_top1", "τ of the accuracy at nearly equal MACs"),
    ("slice_rho_loss", "Spearman’s ρ of the loss at nearly equal MACs"),
    ("slice_rho_top1", "Spearman’s ρ of the accuracy at nearly equal MACs"),
    ("ceiling", "noise ceiling: τ between halves of the seeds"),
    ("partial_ceiling", "noise ceiling of the partial τ"),
    ("slice_ceiling", "noise ceiling at nearly equal MACs"),
    ("trained_loss", "τ of the loss with trained losses"),
    ("trained_loss_ceiling", "noise ceiling of trained losses"),
    ("slice_trained_loss", "τ of the loss with trained losses at nearly equal MACs"),
    ("slice_trained_loss_ceiling", "noise ceiling of trained losses at nearly equal MACs"),
)


def ranking_rows(ranking: Ranking) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of every statistic that was computed."""
    found = [
        (words, _number(one.value), _interval(one))
        for name, words in _ROWS
        if (one := ranking.statistics.get(name)) is not None
    ]
    for regret in ranking.regrets:
        name = f"regret, {regret.budget} (of {plural(regret.architectures, 'architecture')})"
        ends = _interval(Interval(regret.points, regret.low, regret.high))
        noise = "" if regret.std is None else f"one seed’s std: {regret.std:.2f} points"
        notes = "; ".join(filter(None, (ends, noise)))
        found.append((name, f"{regret.points:.2f} points", notes))
    return found


def ranking_table(
    rankings: Mapping[str, Ranking],
) -> tuple[list[tuple[str, bool]], list[tuple[str, ...]]]:
    """The page's table: columns, of which all hold text, and rows; a column for each source."""
    cells: dict[str, dict[str, str]] = {}
    for source, ranking in rankings.items():
        for name, value, interval in ranking_rows(ranking):
            cell = f"{value} ({interval})" if interval else value
            cells.setdefault(name, {})[source] = cell.replace("-", MINUS)
    columns = [("", True), *((f"scores of {source}", True) for source in rankings)]
    rows = [(name, *(row.get(s, NOT_COMPARED) for s in rankings)) for name, row in cells.items()]
    return columns, rows


def write_ranking_csv(rankings: Mapping[str, Ranking], path: Path) -> None:
    """Write every statistic as CSV; numbers in full precision, None as an empty field.

    Columns: ``source`` of the scores, ``figure`` (a name of `octnas.results.ranking.statistics`, or
    ``regret_points/BUDGET``), ``value``, ``low`` and ``high`` of the 95 % interval, and for a
    regret the standard deviation over seeds of one training.
    """
    rows: list[tuple[str | float | None, ...]] = []
    for source, ranking in rankings.items():
        for name, one in ranking.statistics.items():
            rows.append((source, name, one.value, one.low, one.high, None))
        for regret in ranking.regrets:
            name = f"regret_points/{regret.budget}"
            rows.append((source, name, regret.points, regret.low, regret.high, regret.std))
    write_rows(path, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


def ranking_text(source: str, ranking: Ranking) -> str:
    """The table as plain text, with the basis of the check."""
    rows = ranking_rows(ranking)
    names, values = (max(len(row[column]) for row in rows) for column in range(2))
    lines = [
        f"{name:<{names}}  {value:>{values}}  {interval}".rstrip() for name, value, interval in rows
    ]
    return "\n".join(["", f"Scores of {source}: {ranking_basis(ranking)}", "", *lines])


def ranking_basis(ranking: Ranking) -> str:
    """The basis of the check, in a sentence."""
    seeds = len(ranking.architectures[0].truth)
    narrow = sum(one.narrow for one in ranking.architectures)
    how = "fine-tuned from the original" if ranking.tuned else "trained from scratch"
    return (
        f"{plural(len(ranking.architectures), 'architecture')}, {narrow} of them at nearly equal "
        f"MACs, {how} with {plural(seeds, 'seed')} for "
        f"{plural(ranking.epochs, 'epoch')} each ({ranking.seconds['truth']:,.0f} s in total). "
        f"The scores took {ranking.seconds['score']:,.0f} s of training and "
        f"{ranking.seconds['scoring']:,.1f} s of evaluation."
    )


def _interval(one: Interval) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{_number(one.low)} to {_number(one.high)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{round(value, 2) or 0.0:.2f}"  # no -0.00
