"""Command-line options shared by the benchmarks that make runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def experiment_parser(doc: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """A parser of FOLDER, EXPERIMENT, ``--set`` and ``--seeds``.

    Args:
        doc: of the benchmark.
        seeds: the default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    return parser
