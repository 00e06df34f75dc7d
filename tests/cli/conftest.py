import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from octnas.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Octnas = Callable[..., Result]


@pytest.fixture
def octnas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Octnas:
    """Run the program in this process."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["octnas", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        # The program sets it, and later tests start programs of this repository by their names.
        monkeypatch.setenv("PYTHONSAFEPATH", "")
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run
