"""Overhead of a trial: ask and tell.

    python tests/benchmarks/sampler_overhead.py SPACE …

SPACE is the `space/space.json` of a run or the name of a timm model.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from samplers import SAMPLERS, make_driver

from octnas.nn.search_space import search_space
from octnas.search.settings import SearchSettings
from octnas.search.storage import quiet
from octnas.search.study import run_local
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("spaces", nargs="+")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--storage", default="", help="URL of a database; else a journal file")
    args = parser.parse_args()
    quiet()
    _overhead(args.spaces, args.samplers, args.trials, args.storage)


def _overhead(spaces: Sequence[str], samplers: Sequence[str], trials: int, storage: str) -> None:
    """Print the time of a trial without its evaluation."""
    print("| space | sites | sampler | first batches, ms | median, ms | last batches, ms |")
    print("|---" * 6 + "|")
    for name in spaces:
        space = _space(name)
        for sampler in samplers:
            each = _milliseconds(space, sampler, trials, storage)
            quarter = max(1, len(each) // 4)
            found = (np.median(part) for part in (each[:quarter], each, each[-quarter:]))
            cells = " | ".join(f"{value:.1f}" for value in found)
            print(f"| {name} | {len(space.searchable)} | {sampler} | {cells} |", flush=True)


def _milliseconds(space: SearchSpace, sampler: str, trials: int, storage: str) -> np.ndarray:
    """The time of a trial, by batch, with an evaluation that adds up a few numbers."""
    settings = SearchSettings(trials=trials, batch_size=8, spread=16, **SAMPLERS[sampler])
    budgets = [Budget("half", space.cost(space.uniform(0.5)).macs)]
    prices = np.random.default_rng(0).random(len(space.sites))
    moments = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        moments.append(perf_counter())
        return {"loss": 1 + float(prices @ list(alphas.values()))}

    with TemporaryDirectory() as folder:
        driver = make_driver(CostLevels(space), settings, budgets, 0, Path(folder), storage)
        run_local(driver, evaluate)
    # Asking and telling is done for a batch at a time.
    starts = np.array(moments)[:: settings.batch_size]
    return 1000 * np.diff(starts) / settings.batch_size


def _space(name: str) -> SearchSpace:
    if Path(name).is_file():
        return SearchSpace.from_dict(json.loads(Path(name).read_text()))
    return search_space(name, (3, 224, 224), (0, 0.125, 0.25, 0.5, 0.75))


if __name__ == "__main__":
    main()
