"""Ground truths of ranking checks as single files, so that they need not be trained again.

    python tests/benchmarks/ground_truth.py pack RUN FILE      # from a run directory
    python tests/benchmarks/ground_truth.py unpack FILE RUN    # into a new one, before its truth
    python tests/benchmarks/ground_truth.py longer FILE FILE   # does longer training change it?

A file holds the architectures, their accuracies by seed, and the settings they were trained with;
no weights. `octnas rank` refuses it with other settings. An unfinished ground truth can be packed,
too; after `unpack`, `octnas truth` resumes with the missing trainings. `longer` compares the
architectures that two files share: if a training is long enough, a longer one ranks them as
similarly as another seed does.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from octnas.io.files import read_json, write_json
from octnas.runtime.directory import MARKER, RunDirectory

DESIGN = "design.json"
RESULT = "result.json"


def main() -> None:
    """Pack, unpack or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=_WHAT)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    _WHAT[args.what](args.source, args.target)


def _pack(run: Path, file: Path) -> None:
    folder = RunDirectory(run).stage("truth")
    results = {
        f"{path.parts[-3]}/{path.parts[-2]}": _short(read_json(path))
        for path in sorted(folder.glob(f"*/seed-*/{RESULT}"))
    }
    document = {
        "marker": read_json(folder / MARKER),
        "design": read_json(folder / DESIGN),
        "results": results,
    }
    # A line for each training, and not one for each number.
    file.write_text(
        json.dumps(document).replace('"results": {', '"results": {\n').replace("}}, ", "}},\n")
    )


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """Without the epochs."""
    return {**result, "history": []}


def _unpack(file: Path, run: Path) -> None:
    document = json.loads(file.read_text())
    folder = RunDirectory(run).stage("truth")
    for place, result in document["results"].items():
        write_json(folder / place / RESULT, result)
    write_json(folder / DESIGN, document["design"])
    write_json(folder / "stage.json", document["marker"])


def _longer(file: Path, other: Path) -> None:
    first, second = _accuracies(file), _accuracies(other)
    shared = sorted(set(first) & set(second))
    one, two = (np.array([found[key] for key in shared]) for found in (first, second))
    print(
        f"{len(shared)} architectures, accuracy on read by mean and standard deviation of a seed:"
    )
    for path, values in ((file, one), (other, two)):
        spread = np.sqrt(values.var(axis=1, ddof=1).mean())
        print(f"  {path.name}: {values.mean():.1f} ± {spread:.2f} %, {values.shape[1]} seeds")
    print("Kendall's τ, the mean over pairs of seeds:")
    for path, values in ((file, one), (other, two)):
        print(f"  two seeds of {path.name}: {_tau(combinations(values.T, 2)):.2f}")
    print(f"  a seed of each: {_tau(product(one.T, two.T)):.2f}")
    print(f"  the means over seeds: {_tau([(one.mean(axis=1), two.mean(axis=1))]):.2f}")


def _accuracies(file: Path) -> dict[str, list[float]]:
    """Percent on the read part by architecture, in the order of the seeds."""
    found: dict[str, list[float]] = {}
    for place, result in json.loads(file.read_text())["results"].items():
        top1 = 100 * result["metrics"]["read_top1"]
        found.setdefault(place.partition("/")[0], []).append(top1)
    return found


def _tau(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean([kendalltau(a, b).statistic for a, b in pairs]))


_WHAT = {"pack": _pack, "unpack": _unpack, "longer": _longer}

if __name__ == "__main__":
    main()
