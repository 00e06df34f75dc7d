"""Comparison of the ways of training a supernet by how well they rank.

    python tests/benchmarks/strategies.py FOLDER EXPERIMENT

Trains a supernet by every strategy with several seeds, at about equal numbers of forward and
backward passes, scores the same architectures with each, and compares with one ground truth of
stand-alone trainings. Every run is an ordinary run directory in FOLDER, and finished stages are
skipped, so the script can be killed and restarted. Prints a table in Markdown.
"""

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean

from arguments import experiment_parser

from octnas.cli.run import RichProgress
from octnas.pipeline.ranking import read_rankings
from octnas.pipeline.stages import run_stages
from octnas.results.ranking import Interval, Ranking
from tests.pipeline.tiny import open_unlocked

# Overrides of each strategy, and the factor by which it needs fewer epochs for the same compute.
STRATEGIES: Mapping[str, tuple[Sequence[str], int]] = {
    "uniform": (("sampling=uniform", "switchable=false"), 1),
    "by MACs": (("sampling=by_macs", "switchable=false"), 1),
    "uniform, switchable BN": (("sampling=uniform",), 1),
    "by MACs, switchable BN": (("sampling=by_macs",), 1),
    "learnable, switchable BN": (("sampling=learnable",), 1),
    "sandwich": (("sampling=sandwich", "switchable=false"), 4),
    "sandwich, switchable BN": (("sampling=sandwich",), 4),
    "sandwich, switchable BN, labels": (("sampling=sandwich", "teacher=none"), 4),
    "sandwich, switchable BN, taught by α .25": (("sampling=sandwich", "teacher=0.25"), 5),
}
COLUMNS = (
    ("tau_loss", "τ", False),
    ("gain", "minus that of MACs (95 %)", True),
    ("partial_loss", "partial τ", False),
    ("slice_loss", "τ at nearly equal MACs", False),
)
SHARED = (("ceiling", "all"), ("partial_ceiling", "partial"), ("slice_ceiling", "nearly equal"))


def main() -> None:
    """Do what is missing, then print a table of everything."""
    parser = experiment_parser(__doc__, seeds=(0, 1))
    parser.add_argument("--epochs", type=int, default=16, help="of strategies with one pass a step")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    args = parser.parse_args()
    rows = {}
    for seed in args.seeds:
        for name in args.strategies:
            rows.setdefault(name, []).append(_rank(args, name, seed))
            _print(rows)


def _rank(args: argparse.Namespace, name: str, seed: int) -> Mapping[str, Ranking]:
    overrides, divisor = STRATEGIES[name]
    epochs = max(2, round(args.epochs / divisor))
    slug = "".join(char if char.isalnum() else "-" for char in name)
    run = open_unlocked(
        args.experiment,
        overrides=[
            *args.set,
            f"seed={seed}",
            f"supernet.recipe.epochs={epochs}",
            f"ranking.truth_from={args.folder / 'truth'}",
            *(f"supernet.{override}" for override in overrides),
        ],
        run_dir=args.folder / f"{slug}-{seed}",
        stages=("supernet", "truth", "rank"),
        progress=RichProgress(),
    )
    run_stages(run, ("supernet", "truth", "rank"))
    return read_rankings(run)


def _print(rows: Mapping[str, Sequence[Mapping[str, Ranking]]]) -> None:
    heads = [head for _, head, _ in COLUMNS]
    print("\n| strategy | source | " + " | ".join(heads) + " | regret, points | seconds |")
    print("|---" * (len(heads) + 4) + "|")
    for name, rankings in rows.items():
        for source in rankings[0]:
            _print_row(name, source, [found[source] for found in rankings])
    one = next(iter(rows.values()))[0]["supernet"]
    shared = [f"{head} {_number(one.statistics[key].value)}" for key, head in SHARED]
    print(f"\nMACs alone: τ {_number(one.statistics['tau_macs'].value)}")
    print(f"Noise ceilings: {', '.join(shared)}")
    inside = (f"{regret.architectures} inside {regret.budget}" for regret in one.regrets)
    print(f"Architectures: {len(one.architectures)}, {', '.join(inside)}")
    deviations = {regret.std for regret in one.regrets}
    print(f"Standard deviation of one training, points: {', '.join(map(_number, deviations))}\n")


def _print_row(name: str, source: str, found: Sequence[Ranking]) -> None:
    """Values by seed; regrets by budget, then by seed."""
    cells = []
    for key, _, ends in COLUMNS:
        several = [ranking.statistics[key] for ranking in found]
        cells.append(
            ", ".join(_number(one.value) + (_ends(one) if ends else "") for one in several)
        )
    budgets = zip(*(ranking.regrets for ranking in found), strict=True)
    cells.append(" / ".join(", ".join(f"{one.points:.1f}" for one in budget) for budget in budgets))
    seconds = fmean(ranking.seconds["score"] for ranking in found)
    print(f"| {name} | {source} | {' | '.join(cells)} | {seconds:.0f} |")


def _ends(one: Interval) -> str:
    return "" if one.low is None else f" ({_number(one.low)}–{_number(one.high)})"


def _number(value: float | None) -> str:
    """As papers write it, without the zero in front."""
    if value is None:
        return "undefined"
    return f"{round(value, 2) or 0.0:.2f}".replace("0.", ".", abs(value) < 1).replace("-", "−")


if __name__ == "__main__":
    main()
