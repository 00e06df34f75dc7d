"""How often the val images were looked at, in a file that is only ever added to.

A network that is chosen by val is no longer judged by it, so every look is counted.
"""

import json
from collections import Counter
from pathlib import Path

from octnas.io.files import append_line
from octnas.space.architecture import Architecture

LOOKS_FILE = "looks.jsonl"
"""In a run directory; it stays when a stage is redone."""
LOOKS = ("retrain", "export")
"""What the val images are looked at for."""


def log_validation(path: Path, architecture: Architecture, seed: int, size: int, why: str) -> None:
    """Add a line, before the look.

    Args:
        path: of the file.
        architecture: of the network that is tried.
        seed: of its training.
        size: of the images, in pixels.
        why: one of `LOOKS`.
    """
    look = {"architecture": architecture.id, "seed": seed, "size": size, "why": why}
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps(look))


def count_validations(path: Path) -> dict[str, int]:
    """How many looks there were, by reason; without those that there were none for."""
    if not path.exists():
        return {}
    # What is behind the last line break was cut off when its process died.
    lines = path.read_bytes().split(b"\n")[:-1]
    return dict(Counter(json.loads(line)["why"] for line in lines))
