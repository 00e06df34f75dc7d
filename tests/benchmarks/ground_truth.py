"""Ground truths of ranking checks as one file each, so that none has to be trained again.

    python tests/benchmarks/ground_truth.py pack RUN FILE      # from a run directory
    python tests/benchmarks/ground_truth.py unpack FILE RUN    # into a new one, before its truth

A file holds the architectures, their accuracies by seed, and the settings they were trained with;
no weights. `octnas rank` refuses it where it is asked for other settings.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from octnas.run_directory import RunDirectory, read_json, write_json

DESIGN = "design.json"
RESULT = "result.json"


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    (_pack if args.what == "pack" else _unpack)(args.source, args.target)


def _pack(run: Path, file: Path) -> None:
    folder = RunDirectory(run).stage("truth")
    results = {
        f"{path.parts[-3]}/{path.parts[-2]}": _short(read_json(path))
        for path in sorted(folder.glob(f"*/seed-*/{RESULT}"))
    }
    document = {
        "marker": RunDirectory(run).marker("truth"),
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


if __name__ == "__main__":
    main()
