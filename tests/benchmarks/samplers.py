"""Comparison of samplers at few evaluations.

    python tests/benchmarks/samplers.py table RUN FOLDER     # score all architectures of a run
    python tests/benchmarks/samplers.py replay FOLDER …      # the comparison on such tables
    python tests/benchmarks/samplers.py compare RUN FOLDER   # the same where there are too many

A table holds the loss of every architecture on search_val and on read, by the run's supernet, so
use an experiment with few architectures (a thousand: `--set` alphas and fixed sites). `compare`
scores each architecture that a sampler proposes, once; interrupted, it resumes. Every sampler
starts with the same design and sees the search_val losses only. Its front is chosen by the measured
loss or the expected one (`search.choose_by`), then evaluated by its hypervolume on the read part,
where lucky losses do not count. Prints, by number of distinct architectures evaluated, that
hypervolume as a share of that of the front of all architectures (in `compare`, of all that were
scored), with 95 % intervals over seeds, and the surrogate's lead, seed by seed. `--figure FILE`
draws it.
"""

import argparse
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sampler_losses import PARTS, Losses, architectures
from scipy import stats

from octnas.results.front import Candidate
from octnas.search.samplers import bounds, initial_design, proposals
from octnas.search.settings import ChooseBy, SearchSettings
from octnas.search.storage import open_storage, quiet
from octnas.search.study import Driver
from octnas.space.budgets import Region
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget

SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "surrogate": {"sampler": "surrogate"},
    "nsga2": {"sampler": "nsga2"},
    "nsga2-50": {"sampler": "nsga2", "population": 50},
    "tpe": {"sampler": "tpe"},
    "random": {"sampler": "random"},
}
"""Settings by name."""
# Trials that a sampler may have for each evaluation: NSGA-II and TPE propose the same again, which
# is answered without one.
_MOST = 10
WAYS: tuple[ChooseBy, ...] = ("loss", "expected")
Row = tuple[str, ChooseBy]
"""A sampler and how the front is chosen; values of it have the shape ``(seeds, counts)``."""


def main() -> None:
    """Score everything, or compare samplers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    replayed = commands.add_parser("replay")
    compared = commands.add_parser("compare")
    for command in (table, compared):
        command.add_argument("run", type=Path)
        command.add_argument("folder", type=Path)
    replayed.add_argument("folders", type=Path, nargs="+")
    for command, seeds, counts in (
        (replayed, 20, (25, 50, 75, 100, 150)),
        (compared, 3, (50, 100, 200, 400)),
    ):
        command.add_argument("--seeds", type=int, nargs="+", default=range(seeds))
        command.add_argument("--counts", type=int, nargs="+", default=counts)
        command.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
        command.add_argument("--figure", type=Path)
    args = parser.parse_args()
    quiet()
    if args.command == "table":
        _make_table(args.run, args.folder)
        return
    for folder in getattr(args, "folders", None) or [args.folder]:
        losses = Losses.of(folder, getattr(args, "run", None))
        _compare(losses, args.samplers, args.seeds, args.counts, args.figure)


def _make_table(path: Path, folder: Path) -> None:
    losses = Losses.of(folder, path)
    assert losses.run is not None
    with losses.run.progress.bar("table", losses.space.size) as bar:
        for alphas in architectures(losses.space):
            for part in PARTS:
                losses(part, alphas)
            bar.advance()


def _compare(
    losses: Losses,
    samplers: Sequence[str],
    seeds: Sequence[int],
    counts: Sequence[int],
    figure: Path | None,
) -> None:
    found: dict[Row, np.ndarray] = {}
    for sampler in samplers:
        runs = [_evaluated(losses, sampler, seed, max(counts)) for seed in seeds]
        for way in WAYS:
            found[sampler, way] = np.array(
                [[losses.hypervolume(one[:n], way) for n in counts] for one in runs]
            )
    if losses.run is None:
        for alphas in architectures(losses.space):
            losses("read", alphas)
    shares = {row: values / losses.most for row, values in found.items()}
    print(f"\n{losses.folder.name}: {losses.space.size:,} architectures, {len(seeds)} seeds\n")
    print("| sampler | front chosen by | " + " | ".join(map(str, counts)) + " |")
    print("|---" * (len(counts) + 2) + "|")
    for row, values in shares.items():
        _print(row, values)
    best = shares.get(("surrogate", "expected"))
    if best is not None:
        for (sampler, way), values in shares.items():
            if values is not best:
                _print((f"lead of surrogate, expected, over {sampler}", way), best - values)
    if figure is not None:
        _draw(shares, counts, figure)


def _print(row: tuple[str, str], values: np.ndarray) -> None:
    widths = half_width(values)
    cells = [
        f"{mean:.4f} ± {width:.4f}" for mean, width in zip(values.mean(0), widths, strict=True)
    ]
    print("| " + " | ".join([*row, *cells]) + " |", flush=True)


def _evaluated(losses: Losses, sampler: str, seed: int, count: int) -> list[Candidate]:
    """The first architectures that a search evaluates, without repetitions, in their order."""
    settings = SearchSettings(trials=_MOST * count, batch_size=5, spread=12, **SAMPLERS[sampler])
    levels = CostLevels(losses.space)
    budgets = [Budget("all", levels.largest)]
    with TemporaryDirectory() as folder:
        driver = make_driver(levels, settings, budgets, seed, Path(folder))
        while len(driver.candidates()) < count and (job := driver.ask()) is not None:
            driver.tell(job.number, losses("search_val", job.alphas))
        found = driver.candidates()
    assert len(found) >= count, f"{sampler} found {len(found)} different ones only"
    return found[:count]


def make_driver(
    levels: CostLevels,
    settings: SearchSettings,
    budgets: Sequence[Budget],
    seed: int,
    folder: Path,
    storage: str = "",
) -> Driver:
    """A search on a journal in a folder, or in a database."""
    space = levels.space
    admitted = [Region(levels, *bounds(budgets))]
    return Driver(
        space,
        settings,
        storage=open_storage(storage, folder / "study.journal"),
        study_name=f"replay-{folder.name}",
        regions=admitted,
        design=initial_design(space, levels, budgets, settings.spread, seed),
        seed=seed,
        propose=proposals(settings.sampler, admitted, seed),
    )


def _draw(shares: Mapping[Row, np.ndarray], counts: Sequence[int], file: Path) -> None:
    from plotly import graph_objects as go

    figure = go.Figure()
    for (sampler, way), values in shares.items():
        figure.add_scatter(
            x=list(counts),
            y=values.mean(axis=0),
            error_y={"array": half_width(values)},
            name=f"{sampler}, by {'expected' if way == 'expected' else 'measured'} loss",
            line={"dash": "solid" if way == "expected" else "dot"},
        )
    figure.update_layout(
        xaxis_title="evaluations", yaxis_title="share of the best hypervolume on read"
    )
    figure.write_html(file)


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of a 95 % interval of the mean over the first axis, by Student's t."""
    count = len(values)
    if count == 1:
        return np.full(values.shape[1:], np.nan)
    width: np.ndarray = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / sqrt(count)
    return width


if __name__ == "__main__":
    main()
