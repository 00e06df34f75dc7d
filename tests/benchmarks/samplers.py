"""Which sampler finds most with few evaluations: all of them, replayed on a table of everything.

    python tests/benchmarks/samplers.py table RUN FILE     # all architectures of a run
    python tests/benchmarks/samplers.py replay FILE …      # the comparison, printed in Markdown
    python tests/benchmarks/samplers.py overhead SPACE …   # time to ask for a trial and to tell it

A table holds the loss of every architecture on the rank and on the read part, by the run's
supernet; so take an experiment with few of them (a thousand: `--set` alphas and fixed sites). In
a replay every sampler begins with the same design, sees the rank losses only, and its front is
judged by its hypervolume on the read part, after the choice: what was won by luck is lost there.
Printed are, after so many evaluations, the share of the hypervolume that the front of all
architectures has, on rank and (of the front that was chosen on rank) on read, with 95 % intervals
over seeds. SPACE is the `space/space.json` of a run or the name of a timm model.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from octnas.cli.progress import RichProgress
from octnas.costs import Budget
from octnas.front import Candidate, Front
from octnas.levels import CostLevels
from octnas.nn.shapes import search_space
from octnas.pipeline.opening import open_run
from octnas.pipeline.supernet import scorer
from octnas.run_directory import write_json
from octnas.search.design import bounds, initial_design
from octnas.search.proposals import proposals
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.storage import open_storage
from octnas.search.study import Driver, quiet, run_local
from octnas.space import SearchSpace

SAMPLERS: tuple[Sampler, ...] = ("surrogate", "nsga2", "tpe", "random")
PARTS = ("rank", "read")
COUNTS = (25, 50, 75, 100, 150)
Losses = Mapping[str, Mapping[str, float]]


def main() -> None:
    """Make a table, or replay some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("run", type=Path)
    table.add_argument("file", type=Path)
    replay = commands.add_parser("replay")
    replay.add_argument("files", type=Path, nargs="+")
    replay.add_argument("--seeds", type=int, default=20)
    replay.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    overhead = commands.add_parser("overhead")
    overhead.add_argument("spaces", nargs="+")
    overhead.add_argument("--trials", type=int, default=200)
    overhead.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    args = parser.parse_args()
    quiet()
    if args.command == "overhead":
        _overhead(args.spaces, args.samplers, args.trials)
        return
    if args.command == "table":
        _make_table(args.run, args.file)
        return
    for file in args.files:
        _replay(file, args.samplers, range(args.seeds))


def _make_table(path: Path, file: Path) -> None:
    run = open_run(path, stages=("supernet",), progress=RichProgress())
    space, parts = run.space, {part: scorer(run, part)() for part in ("rank", "read")}
    losses: dict[str, dict[str, float]] = {}
    with run.progress.bar("table", space.size) as bar:
        for alphas in _architectures(space):
            found = {part: score(alphas)["loss"] for part, score in parts.items()}
            losses[space.architecture(alphas).id] = found
            bar.advance()
    write_json(file, {"schema": 1, "space": space.to_dict(), "losses": losses})


def _replay(file: Path, samplers: Sequence[Sampler], seeds: Sequence[int]) -> None:
    document = json.loads(file.read_text())
    space, losses = SearchSpace.from_dict(document["space"]), document["losses"]
    levels = CostLevels(space)
    reference = float(levels.dearest), max(found["rank"] for found in losses.values())
    everything = [
        Candidate(space.architecture(alphas).id, alphas, space.cost(alphas).macs, 0.0)
        for alphas in _architectures(space)
    ]
    whole = {part: _hypervolume(everything, losses, part, reference) for part in PARTS}
    print(f"\n{file.stem}: {space.size:,} architectures, {len(seeds)} seeds\n")
    print("| sampler | " + " | ".join(map(str, COUNTS)) + " |")
    print("|---" * (len(COUNTS) + 1) + "|")
    for sampler in samplers:
        runs = [_evaluated(space, levels, losses, sampler, seed) for seed in seeds]
        cells = []
        for count in COUNTS:
            shares = {
                part: [_hypervolume(one[:count], losses, part, reference) for one in runs]
                for part in PARTS
            }
            both = [_interval(np.array(shares[part]) / whole[part]) for part in PARTS]
            cells.append(" / ".join(both))
        print(f"| {sampler} | " + " | ".join(cells) + " |", flush=True)


def _architectures(space: SearchSpace) -> Iterator[dict[str, float]]:
    """α by site of every architecture."""
    names = [site.name for site in space.sites]
    for shares in product(*(site.choices for site in space.sites)):
        yield dict(zip(names, shares, strict=True))


def _evaluated(
    space: SearchSpace, levels: CostLevels, losses: Losses, sampler: Sampler, seed: int
) -> list[Candidate]:
    """What a search evaluates, in the order of the trials; a trial that was a twin adds nothing."""
    settings = SearchSettings(trials=max(COUNTS), batch_size=5, spread=12, sampler=sampler)
    budgets = [Budget("all", levels.dearest)]

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        return {"loss": losses[space.architecture(alphas).id]["rank"]}

    with TemporaryDirectory() as folder:
        driver = _driver(levels, settings, budgets, seed, Path(folder))
        run_local(driver, evaluate)
        by_trial = {candidate.trial: candidate for candidate in driver.candidates()}
    blank = Candidate("", {}, 0, inf)
    return [by_trial.get(number, blank) for number in range(settings.trials)]


def _driver(
    levels: CostLevels,
    settings: SearchSettings,
    budgets: Sequence[Budget],
    seed: int,
    folder: Path,
) -> Driver:
    space = levels.space
    return Driver(
        space,
        settings,
        storage=open_storage("", folder / "study.journal"),
        study_name="replay",
        bounds=bounds(budgets),
        design=initial_design(space, levels, budgets, settings.spread, seed),
        seed=seed,
        propose=proposals(settings.sampler, levels, bounds(budgets), seed),
        log=folder / "outcomes.jsonl",
    )


def _overhead(spaces: Sequence[str], samplers: Sequence[Sampler], trials: int) -> None:
    """What a trial takes besides its evaluation."""
    print("| space | sites | sampler | first batches, ms | median, ms | last batches, ms |")
    print("|---" * 6 + "|")
    for name in spaces:
        space = _space(name)
        for sampler in samplers:
            each = _milliseconds(space, sampler, trials)
            quarter = max(1, len(each) // 4)
            found = (np.median(part) for part in (each[:quarter], each, each[-quarter:]))
            cells = " | ".join(f"{value:.1f}" for value in found)
            print(f"| {name} | {len(space.searchable)} | {sampler} | {cells} |", flush=True)


def _milliseconds(space: SearchSpace, sampler: Sampler, trials: int) -> np.ndarray:
    """Of a trial of each batch, where evaluating is adding up a few numbers."""
    settings = SearchSettings(trials=trials, batch_size=8, spread=16, sampler=sampler)
    budgets = [Budget("half", space.cost(space.uniform(0.5)).macs)]
    prices = np.random.default_rng(0).random(len(space.sites))
    moments = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        moments.append(perf_counter())
        return {"loss": 1 + float(prices @ list(alphas.values()))}

    with TemporaryDirectory() as folder:
        run_local(_driver(CostLevels(space), settings, budgets, 0, Path(folder)), evaluate)
    # Asking and telling is done for a batch at a time.
    starts = np.array(moments)[:: settings.batch_size]
    return 1000 * np.diff(starts) / settings.batch_size


def _space(name: str) -> SearchSpace:
    if Path(name).is_file():
        return SearchSpace.from_dict(json.loads(Path(name).read_text()))
    return search_space(name, (3, 224, 224), (0, 0.125, 0.25, 0.5, 0.75))


def _hypervolume(
    candidates: Sequence[Candidate], losses: Losses, part: str, reference: tuple[float, float]
) -> float:
    """Hypervolume on a part of the front that was chosen on rank."""
    known = [c for c in candidates if c.id]
    ranked = [Candidate(c.id, c.alphas, c.macs, losses[c.id]["rank"]) for c in known]
    front = Front.of(ranked).candidates
    read = [Candidate(c.id, c.alphas, c.macs, losses[c.id][part]) for c in front]
    return Front.of(read).hypervolume(reference)


def _interval(values: np.ndarray) -> str:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
