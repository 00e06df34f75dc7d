"""The experiments that come with octnas."""

from pathlib import Path

from octnas.errors import OctnasError


def shipped_experiments() -> list[Path]:
    """The shipped YAML files, sorted by name.

    An installed package holds them; in a checkout they stand beside the package.

    Raises:
        OctnasError: neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if found := sorted(folder.glob("*.yaml")):
            return found
    raise OctnasError("the shipped experiments are missing; install octnas again")


def default_experiment() -> Path:
    """The experiment that needs no data of one's own: cluttered digits."""
    return next(path for path in shipped_experiments() if path.stem == "digits")
