"""Learned distributions over α against sampling.

    python tests/benchmarks/learnable.py FOLDER EXPERIMENT

For several seeds, a supernet with `sampling: learnable` gives the most probable architecture inside
each budget, and supernets of the sampled strategies, with as many passes, are searched. All
networks found are trained from scratch with one recipe and evaluated on val. Every run is an
ordinary run directory in FOLDER, and finished stages are skipped. Prints Markdown: how far the
expected MACs are from the budget, accuracies by budget, and seconds of supernet and search.
"""

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import yaml
from arguments import experiment_parser

from octnas.cli.run import RichProgress
from octnas.pipeline import search, supernet
from octnas.pipeline.records import read_results
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.pipeline.supernet import read_distributions
from octnas.results.networks import SEARCHED
from octnas.space.distribution import likeliest
from tests.pipeline.tiny import open_unlocked

LEARNABLE = "learnable"
# Overrides of each way, and how many passes a step of its supernet makes.
WAYS: Mapping[str, tuple[Sequence[str], int]] = {
    LEARNABLE: (("supernet.sampling=learnable", "search.sampler=learned"), 1),
    "by MACs, searched": (("supernet.sampling=by_macs", "search.sampler=surrogate"), 1),
    "sandwich, searched": (("supernet.sampling=sandwich", "search.sampler=surrogate"), 4),
    "uniform, searched": (("supernet.sampling=uniform", "search.sampler=surrogate"), 1),
}
STAGES = ("supernet", "search", "retrain")


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = experiment_parser(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    runs = {way: [_run(args, way, seed) for seed in args.seeds] for way in args.ways}
    if LEARNABLE in runs:
        _print_expectations(runs[LEARNABLE])
    _print_accuracies(runs)


def _run(args: argparse.Namespace, way: str, seed: int) -> Run:
    slug = way.replace(", ", "-").replace(" ", "-")
    changes, passes = WAYS[way]
    epochs = yaml.safe_load(args.experiment.read_text())["supernet"]["recipe"]["epochs"]
    equal = f"supernet.recipe.epochs={round(epochs / passes)}"
    overrides = [*args.set, f"seed={seed}", "retrain.baselines=[]", equal, *changes]
    if way == LEARNABLE:
        # Nothing is evaluated but what was learned, one architecture for each budget.
        budgets = yaml.safe_load(args.experiment.read_text())["space"]["budgets"]
        overrides += ["search.spread=0", f"search.trials={len(budgets)}"]
    run = open_unlocked(
        args.experiment,
        overrides=overrides,
        run_dir=args.folder / f"{slug}-{seed}",
        stages=STAGES,
        progress=RichProgress(),
    )
    run_stages(run, STAGES)
    return run


def _print_expectations(runs: Sequence[Run]) -> None:
    print("\n| budget | MACs | expected MACs, off by, each seed | most probable inside | of all |")
    print("|---|---|---|---|---|")
    for index, budget in enumerate(runs[0].budgets):
        found = [read_distributions(run)[index] for run in runs]
        off = ", ".join(f"{one.expected_macs / budget.max_macs - 1:+.2%}" for one in found)
        inside = ", ".join(f"{one.macs / 1e6:.3f} M" for one in found)
        space = runs[0].space
        costs = [space.cost(likeliest(space, one.probabilities)).macs for one in found]
        of_all = ", ".join(f"{macs / 1e6:.3f} M" for macs in costs)
        print(f"| {budget.name} | {budget.max_macs / 1e6:.3f} M | {off} | {inside} | {of_all} |")


def _print_accuracies(runs: Mapping[str, Sequence[Run]]) -> None:
    budgets = [budget.name for budget in next(iter(runs.values()))[0].budgets]
    print("\n| way | " + " | ".join(f"top-1, {name}" for name in budgets) + " | seconds |")
    print("|---" * (len(budgets) + 2) + "|")
    for way, several in runs.items():
        cells = []
        for name in budgets:
            top1 = [
                100 * result.mean("val_top1")
                for run in several
                for result in read_results(run)
                if result.network.role == SEARCHED and result.network.budget == name
            ]
            spread = f" ± {stdev(top1):.1f}" if len(top1) > 1 else ""
            cells.append(f"{fmean(top1):.1f}{spread}")
        seconds = fmean(supernet.read_seconds(run) + search.read_seconds(run) for run in several)
        print(f"| {way} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
