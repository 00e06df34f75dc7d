"""The log of validations, a file that is only ever appended to.

Choosing a network by the val images spoils them for evaluating it, so every validation is counted.
"""

import json
from collections import Counter
from pathlib import Path

from octnas.io.files import append_line
from octnas.space.architecture import Architecture

VALIDATION_LOG = "looks.jsonl"
"""In a run directory; it stays when a stage is redone."""
PURPOSES = ("retrain", "export")
"""The purposes of a validation."""


def log_validation(path: Path, architecture: Architecture, seed: int, size: int, why: str) -> None:
    """Append a line, before the validation; ``size`` is in pixels, ``why`` one of `PURPOSES`."""
    entry = {"architecture": architecture.id, "seed": seed, "size": size, "why": why}
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps(entry))


def count_validations(path: Path) -> dict[str, int]:
    """The number of validations by purpose; purposes without any are left out."""
    if not path.exists():
        return {}
    # A killed process may have left part of a last line.
    lines = path.read_bytes().split(b"\n")[:-1]
    return dict(Counter(json.loads(line)["why"] for line in lines))
