"""Experiment files as settings, for tests."""

from collections.abc import Sequence
from pathlib import Path

from octnas.config import RunConfig, check_config, load_document


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check an experiment file."""
    return check_config(load_document(path, overrides))
