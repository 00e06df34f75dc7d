"""What is left of trained networks: octave networks, searched and uniform, against pruned ones.

    python tests/benchmarks/trained.py run FOLDER EXPERIMENT ROOT   # goes on where it was stopped
    python tests/benchmarks/trained.py show FOLDER
    python tests/benchmarks/trained.py time FOLDER   # in ONNX Runtime, one image, one thread

One run for each of two originals. Differences are paired by original and by the seed of
fine-tuning, which also decides the order of the images; seeds that are not finished with every
network are left out.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

import torch
from torch import nn

from octnas.io.files import read_json
from octnas.measure.backends import prepare
from octnas.measure.settings import BenchSettings
from octnas.measure.timing import compare, interleave
from octnas.nn.supernet import build
from octnas.pipeline.retrain import PLAN_FILE
from octnas.report.style import plural
from octnas.results.networks import ORIGINAL, SEARCHED, VANILLA, Network, Retrained, SeedResult
from octnas.results.verdict import mean_interval
from octnas.space.architecture import Architecture
from octnas.training.standalone import RESULT_FILE

ORIGINALS = (0, 1)
_ROUNDS = 60
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
    """The original and the networks of a run, with the seeds that all of them are finished with."""
    stage = place / "retrain"
    networks = read_json(stage / PLAN_FILE, list[Network], schema=1, key="networks")
    folders = [stage / network.architecture.id for network in networks]
    done = [{file.parent.name for file in one.glob(f"*/{RESULT_FILE}")} for one in folders]
    seeds = sorted(set.intersection(*done))
    original = baseline_of(networks)
    return (
        Retrained(original, (read_json(stage / ORIGINAL / RESULT_FILE, SeedResult),)),
        [
            Retrained(
                network,
                tuple(read_json(folder / seed / RESULT_FILE, SeedResult) for seed in seeds),
            )
            for network, folder in zip(networks, folders, strict=True)
        ],
    )


def baseline_of(networks: list[Network]) -> Network:
    """The vanilla network, which the original is."""
    return next(one for one in networks if one.role == VANILLA)


def time(folder: Path) -> None:
    """Print the time of each network as a share of the original's."""
    place = next(iter(places(folder)))
    networks = read_json(place / "retrain" / PLAN_FILE, list[Network], schema=1, key="networks")
    settings = BenchSettings(threads=1)
    original = baseline_of(networks).architecture
    image = torch.randn(1, *original.input_size)
    steps = {
        network.name: prepare("onnxruntime", busy(network.architecture), image, settings)
        for network in networks
    }
    whole = baseline_of(networks)
    seconds = interleave(steps, repeats=_ROUNDS)
    print("| network | share of MACs | ms | share of the original's time (95 %) |")
    print("| --- | --- | --- | --- |")
    for network in networks:
        own, share = seconds[network.name], network.cost.macs / whole.cost.macs
        ratio = compare(own, seconds[whole.name])
        print(
            f"| {network.name} | {share:.2f} | {1000 * median(own):.2f} "
            f"| {ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f}) |"
        )


def busy(architecture: Architecture) -> nn.Module:
    """The network with batch norms that are not the identity, so that its logits have a size."""
    model = build(architecture, seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def places(folder: Path) -> list[Path]:
    """The runs with planned networks."""
    return [place for place in sorted(folder.iterdir()) if (place / "retrain" / PLAN_FILE).exists()]


def show(folder: Path) -> None:
    """Print each network against the original, and the searched ones against their baselines."""
    runs = [read(place) for place in places(folder)]
    seeds = [len(networks[0].runs) for _, networks in runs]
    if not all(seeds):
        sys.exit(f"{folder}: no fine-tuning is finished with every network of every original")
    whole = fmean(original.mean("val_top1") for original, _ in runs)
    loss = fmean(original.mean("val_loss") for original, _ in runs)
    print(
        f"{len(runs)} originals of {100 * whole:.1f} % top-1 and loss {loss:.3f}, "
        f"{plural(min(seeds), 'fine-tuning')} of each"
    )
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
    for name in ("show", "time"):
        commands.add_parser(name).add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        carry_out(given.folder, given.experiment, given.root.resolve())
    (time if given.command == "time" else show)(given.folder)
