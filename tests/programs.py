"""Programs in processes of their own, which signals are sent to."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def begun(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of Python, once it has said that it has begun."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
