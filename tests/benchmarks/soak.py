"""Growth of memory, time, open files and disk in a long search, by candidates reported.

    python tests/benchmarks/soak.py FOLDER EXPERIMENT --trials 5000 --samplers surrogate nsga2

The search is that of `octnas search`, with its study, its outcomes on disk and its records in
MLflow; only scoring costs nothing: a candidate's loss is a sum over its sites. No supernet is
trained. Every row is about the candidates since the previous row. Times are CPU times of one
candidate, so that other load on the machine does not count.
"""

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
from arguments import experiment_parser

from octnas.pipeline import search
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.runtime.progress import Quiet
from octnas.search.study import Driver, Job, Outcome
from tests.pipeline.tiny import open_unlocked

COLUMNS = ("candidates", "ask, ms", "tell, ms", "memory, MB", "open files", "threads", "disk, MB")


@dataclass
class Clock:
    """Seconds since the last row, and where rows go."""

    folder: Path
    every: int
    ask: float = 0.0
    tell: float = 0.0
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def row(self, reported: int) -> None:
        """Print a row, and begin the next one."""
        each = [1000 * seconds / self.every for seconds in (self.ask, self.tell)]
        files = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        row = (reported, *each, memory() / 1e6, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        row = (*row, len(os.listdir("/proc/self/task")), files / 1e6)  # noqa: PTH208
        print("| " + " | ".join(f"{value:,.4g}" for value in row) + " |", flush=True)
        self.rows.append(row)
        self.ask = self.tell = 0.0


def memory() -> int:
    """Resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def timed(clock: Clock) -> type[Driver]:
    """The search's driver, timed."""

    class Timed(Driver):
        def ask(self) -> Job | None:
            begun = thread_time()
            job = super().ask()
            clock.ask += thread_time() - begun
            return job

        def tell(self, number: int, outcome: Outcome) -> None:
            begun = thread_time()
            super().tell(number, outcome)
            clock.tell += thread_time() - begun
            # Repeated proposals have no outcome of their own.
            if (number + 1) // clock.every > len(clock.rows):
                clock.row(clock.every * (len(clock.rows) + 1))

    return Timed


def free(run: Run, *_: object) -> Callable[[], Callable[..., dict[str, float]]]:
    """A stand-in for the supernet's scores: random prices of the sites, by a fixed seed."""
    names = [site.name for site in run.space.sites]
    prices = dict(zip(names, np.random.default_rng(0).random(len(names)), strict=True))

    def score(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        loss = 1 + float(sum(prices[name] * alpha**2 for name, alpha in alphas.items()))
        return {"loss": loss, "top1": 1 / loss}

    return lambda: score


def main() -> None:
    """Search with each sampler, in a run directory of its own."""
    parser = experiment_parser(__doc__, [0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--samplers", nargs="+", default=["surrogate", "nsga2"])
    args = parser.parse_args()
    search.scorer = free  # type: ignore[assignment]
    for sampler in args.samplers:
        overrides = (*args.set, f"search.sampler={sampler}", f"search.trials={args.trials}")
        folder = args.folder / sampler
        run = open_unlocked(
            args.experiment, overrides=overrides, run_dir=folder, progress=Quiet(print)
        )
        run_stages(run, ("data", "space"))
        clock = Clock(folder, args.every)
        search.Driver = timed(clock)  # type: ignore[misc]
        print(f"\n{sampler}, {len(run.space.searchable)} sites, {run.space.size:.3g} architectures")
        print("| " + " | ".join(COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|", flush=True)
        begun = perf_counter()
        search.search(run)
        between = perf_counter()
        run.tracker.close()
        ended = perf_counter()
        print(
            f"{between - begun:,.0f} s, then {ended - between:,.0f} s to empty the MLflow outbox, "
            f"{memory() / 1e6:,.0f} MB"
        )


if __name__ == "__main__":
    main()
