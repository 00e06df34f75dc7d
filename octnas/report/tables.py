"""The table of retrained networks, as rows and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from octnas.results import UNIFORM, VANILLA, Retrained
from octnas.run_directory import write_text

NOT_COMPARED = (UNIFORM, VANILLA)  # roles of which no difference to the uniform network is given


@dataclass(frozen=True)
class RetrainedRow:
    """One retrained network; the fields are the columns of the CSV, in this order.

    Attributes:
        role, budget: as in `octnas.results.Network`.
        architecture: its id.
        macs, params, activation_bytes: for one image.
        macs_share: MACs as a share of the vanilla network's, 0 to 1.
        seeds: how many trainings there were.
        val_top1_mean_percent, val_top1_std_points: over seeds; the standard deviation (n - 1) is
            None with a single seed.
        val_loss_mean, val_loss_std: the same for the cross-entropy.
        seconds_mean: of one training.
        difference_to_uniform_points: of the mean top-1 to the uniform network of the same budget;
            None for that network itself, for vanilla, and where it was not retrained.
    """

    role: str
    budget: str
    architecture: str
    macs: int
    macs_share: float
    params: int
    activation_bytes: int
    seeds: int
    val_top1_mean_percent: float
    val_top1_std_points: float | None
    val_loss_mean: float
    val_loss_std: float | None
    seconds_mean: float
    difference_to_uniform_points: float | None


COLUMNS = tuple(field.name for field in fields(RetrainedRow))


def retrained_rows(retrained: Sequence[Retrained], vanilla_macs: int) -> tuple[RetrainedRow, ...]:
    """One row for each network, in the given order."""
    uniform = {other.network.budget: other for other in retrained if other.network.role == UNIFORM}
    rows: list[RetrainedRow] = []
    for one in retrained:
        compared = one.network.role not in NOT_COMPARED
        baseline = uniform.get(one.network.budget) if compared else None
        rows.append(_row(one, vanilla_macs, baseline))
    return tuple(rows)


def write_csv(rows: Sequence[RetrainedRow], path: Path) -> None:
    """Write rows as CSV with a header; numbers in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def _row(one: Retrained, vanilla_macs: int, uniform: Retrained | None) -> RetrainedRow:
    network, cost = one.network, one.network.cost
    std = one.std("val_top1")
    return RetrainedRow(
        role=network.role,
        budget=network.budget,
        architecture=network.architecture.id,
        macs=cost.macs,
        macs_share=cost.macs / vanilla_macs,
        params=cost.params,
        activation_bytes=cost.activation_bytes,
        seeds=len(one.runs),
        val_top1_mean_percent=100 * one.mean("val_top1"),
        val_top1_std_points=None if std is None else 100 * std,
        val_loss_mean=one.mean("val_loss"),
        val_loss_std=one.std("val_loss"),
        seconds_mean=one.mean("seconds"),
        difference_to_uniform_points=(
            100 * (one.mean("val_top1") - uniform.mean("val_top1")) if uniform else None
        ),
    )
