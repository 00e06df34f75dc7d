"""Which way of training a supernet ranks best.

    python tests/benchmarks/strategies.py FOLDER EXPERIMENT

Trains a supernet by every strategy with several seeds, at about equal numbers of forward and
backward passes, scores the same architectures with each, and compares with one ground truth of
stand-alone trainings. Every run is an ordinary run directory in FOLDER; what is finished is not
done again, so the script may be killed and started anew. Prints a table in Markdown.
"""

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean

from arguments import experiment_parser

from octnas.cli.progress import RichProgress
from octnas.pipeline.opening import open_run
from octnas.pipeline.rank import read_rankings
from octnas.pipeline.stages import run_stages
from octnas.ranking import Ranking

# Overrides of each strategy, and by how much it needs fewer epochs for the same compute.
STRATEGIES: Mapping[str, tuple[Sequence[str], int]] = {
    "uniform": (("sampling=uniform", "by_role=false"), 1),
    "by MACs": (("sampling=by_macs", "by_role=false"), 1),
    "uniform, by role": (("sampling=uniform",), 1),
    "by MACs, by role": (("sampling=by_macs",), 1),
    "sandwich": (("sampling=sandwich", "by_role=false"), 4),
    "sandwich, by role": (("sampling=sandwich",), 4),
    "sandwich, by role, labels": (("sampling=sandwich", "teacher=none"), 4),
    "sandwich, by role, taught by α .25": (("sampling=sandwich", "teacher=0.25"), 5),
}
COLUMNS = (
    ("tau_loss", "τ"),
    ("gain", "τ less MACs'"),
    ("partial_loss", "partial τ"),
    ("slice_loss", "slice τ"),
)
SHARED = (("ceiling", "ceiling"), ("partial_ceiling", "partial"), ("slice_ceiling", "slice"))


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
    run = open_run(
        args.experiment,
        overrides=[
            *args.set,
            f"seed={seed}",
            f"supernet.recipe.epochs={epochs}",
            f"ranking.truth_from={args.folder / 'truth'}",
            *(f"supernet.{override}" for override in overrides),
        ],
        run_dir=args.folder / f"{slug}-{seed}",
        stages=("supernet", "proxies", "truth", "rank"),
        progress=RichProgress(),
    )
    run_stages(run, ("supernet", "proxies", "truth", "rank"))
    return read_rankings(run)


def _print(rows: Mapping[str, Sequence[Mapping[str, Ranking]]]) -> None:
    heads = [head for _, head in COLUMNS]
    print("\n| strategy | source | " + " | ".join(heads) + " | regret, points | seconds |")
    print("|---" * (len(heads) + 4) + "|")
    for name, rankings in rows.items():
        for source in rankings[0]:
            _print_row(name, source, [found[source] for found in rankings])
    one = next(iter(rows.values()))[0]["supernet"]
    shared = [f"{head} {_value(one, key):.2f}" for key, head in SHARED]
    print(f"\nMACs alone: τ {_value(one, 'tau_macs'):.2f}; noise ceilings: {', '.join(shared)}\n")


def _print_row(name: str, source: str, found: Sequence[Ranking]) -> None:
    cells = []
    for key, _ in COLUMNS:
        values = [_value(ranking, key) for ranking in found]
        several = " (" + ", ".join(f"{value:.2f}" for value in values) + ")"
        cells.append(f"{fmean(values):.2f}{several if len(values) > 1 else ''}")
    budgets = zip(*(ranking.regrets for ranking in found), strict=True)
    regret = ", ".join(f"{fmean(one.points for one in budget):.1f}" for budget in budgets)
    seconds = fmean(ranking.seconds["score"] for ranking in found)
    print(f"| {name} | {source} | {' | '.join(cells)} | {regret} | {seconds:.0f} |")


def _value(ranking: Ranking, key: str) -> float:
    value = ranking.statistics[key].value
    return float("nan") if value is None else value


if __name__ == "__main__":
    main()
