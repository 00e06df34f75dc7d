"""What pip is held to in `make matrix`: the oldest versions that pyproject.toml states, or none.

python tests/matrix.py oldest|newest
"""

import re
import sys
import tomllib
from pathlib import Path

DECISIVE = ("torch", "torchvision", "timm", "optuna", "ray", "mlflow")
"""The libraries whose interfaces change; the others follow from what these need."""

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest() -> list[str]:
    """Each of the libraries at its lower bound, with whatever patch release there is of it."""
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    found = []
    for line in project["dependencies"]:
        match = re.fullmatch(r"([a-z0-9-]+)(?:\[.*\])?>=([0-9.]+)", line)
        assert match, line
        if match[1] in DECISIVE:
            found.append(
                f"{match[1]}~={match[2]}.0"
                if match[2].count(".") < 2
                else f"{match[1]}=={match[2]}"
            )
    return found


def main() -> None:
    """Print the constraints."""
    lines = {"oldest": oldest(), "newest": list[str]()}[sys.argv[1]]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
