"""What is left of trained networks: octave networks, searched and uniform, against pruned ones.

    python tests/benchmarks/trained.py run FOLDER EXPERIMENT ROOT   # goes on where it was stopped
    python tests/benchmarks/trained.py show FOLDER

One run for each of two originals. Differences are paired by original and by the seed of
fine-tuning, which also decides the order of the images.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from octnas.io.files import read_json
from octnas.results.networks import SEARCHED, Retrained
from octnas.results.verdict import mean_interval

ORIGINALS = (0, 1)
METRICS = (("val_loss", 1.0, "loss"), ("val_top1", 100.0, "points"))


def carry_out(folder: Path, experiment: Path, root: Path) -> None:
    """Run the experiment with each original."""
    for seed in ORIGINALS:
        place = folder / f"{experiment.stem}-{seed}"
        given = [str(experiment), "--run-dir", str(place)]
        sets = [f"data.root={root}", f"original.seed={seed}", f"seed={seed}"]
        overrides = [word for one in sets for word in ("--set", one)]
        command = [sys.executable, "-c", "from octnas.cli.main import main; main()", "run"]
        subprocess.run([*command, *given, *overrides], check=True)


def read(place: Path) -> tuple[Retrained, list[Retrained]]:
    """The original and the networks of a run."""
    file = place / "retrain" / "results.json"
    return (
        read_json(file, Retrained, schema=1, key="original"),
        read_json(file, list[Retrained], schema=1, key="networks"),
    )


def show(folder: Path) -> None:
    """Print each network against the original, and the searched ones against their baselines."""
    runs = [read(place) for place in sorted(folder.iterdir()) if (place / "retrain").is_dir()]
    whole = fmean(original.mean("val_top1") for original, _ in runs)
    loss = fmean(original.mean("val_loss") for original, _ in runs)
    print(f"{len(runs)} originals: {100 * whole:.1f} % top-1, loss {loss:.3f}")
    by_name: dict[str, list[Retrained]] = {}
    for _, networks in runs:
        for one in networks:
            by_name.setdefault(one.network.name, []).append(one)
    print("| network | MACs | activations, MB | loss | top-1, % | against the original |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in by_name.items():
        cost = found[0].network.cost
        against = [
            100 * (value - original.mean("val_top1"))
            for one, (original, _) in zip(found, runs, strict=True)
            for value in one.values("val_top1")
        ]
        print(
            f"| {name} | {cost.macs / 1e6:.1f} M | {cost.activation_bytes / 1e6:.2f} "
            f"| {fmean(one.mean('val_loss') for one in found):.3f} "
            f"| {100 * fmean(one.mean('val_top1') for one in found):.1f} | {interval(against)} |"
        )
    for name, found in by_name.items():
        network = found[0].network
        if network.budget and network.role != SEARCHED:
            for metric, scale, unit in METRICS:
                ahead = differences(by_name[f"{SEARCHED}, {network.budget}"], found, metric, scale)
                print(f"searched − {name}: {interval(ahead)} {unit}")


def differences(
    first: list[Retrained], second: list[Retrained], metric: str, scale: float
) -> list[float]:
    """Paired by original and seed."""
    return [
        scale * (one - other)
        for a, b in zip(first, second, strict=True)
        for one, other in zip(a.values(metric), b.values(metric), strict=True)
    ]


def interval(values: list[float]) -> str:
    """A mean with its 95 % interval by Student's t."""
    mean, half = mean_interval(values)
    return f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run")
    of_run.add_argument("folder", type=Path)
    of_run.add_argument("experiment", type=Path)
    of_run.add_argument("root", type=Path)
    commands.add_parser("show").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        carry_out(given.folder, given.experiment, given.root.resolve())
    show(given.folder)
