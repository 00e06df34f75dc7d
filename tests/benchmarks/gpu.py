"""Benchmark octave networks on a GPU: `python tests/benchmarks/gpu.py FOLDER`.

ResNet-50 in bfloat16 and channels-last, batch 1 (as a CUDA graph) and 128, inference and training,
eager and compiled. Needs torch, timm and numpy only. Every combination is one JSON file in FOLDER;
existing ones are not measured again, so the script can be killed and restarted.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from octnas.measure.bench import bench
from octnas.measure.settings import BenchSettings


def main() -> None:
    """Measure what is missing, then print a table of everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    combinations = itertools.product(("inference", "training"), args.batches, ("compile", "eager"))
    for mode, batch, backend in combinations:
        path = args.folder / f"{mode}-{batch}-{backend}.json"
        if not path.exists():
            _measure(path, args, mode, batch, backend)
        document = json.loads(path.read_text())
        rows += [{"mode": mode, **document["environment"], **row} for row in document["rows"]]
    _print(rows)


def _measure(path: Path, args: argparse.Namespace, mode: str, batch: int, backend: str) -> None:
    print(f"measuring {path.stem}", flush=True)
    torch.compiler.reset()
    found = bench(
        BenchSettings(
            model=args.model,
            input_size=args.input_size,
            alphas={"0.25": 0.25, "0.5": 0.5, "0.75": 0.75},
            batches=(batch,),
            backends=(backend,),
            mode=mode,
            device=args.device,
            precision="bfloat16",
            threads=0,
            repeats=args.repeats,
        )
    )
    # Whole or not at all: a half-written file would be taken for a finished one.
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(found.to_dict(), indent=2))
    draft.rename(path)


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"\n{rows[0]['device']}, torch {rows[0]['torch']}\n")
    print("| mode | batch | backend | α | ms | time | 95 % | MACs | time / MACs |")
    print("| --- " * 9 + "|")
    for row in rows:
        print(
            f"| {row['mode']} | {row['batch']} | {row['backend']} | {row['alpha']} "
            f"| {row['milliseconds']:.3f} | {row['latency_ratio']:.3f} "
            f"| {row['latency_low']:.3f}–{row['latency_high']:.3f} | {row['macs_ratio']:.3f} "
            f"| {row['quotient']:.3f} |"
        )


if __name__ == "__main__":
    main()
