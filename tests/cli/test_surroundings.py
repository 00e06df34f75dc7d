"""What the program is started in: the working directory and its files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = "import multiprocessing, os, sys\nfrom octnas.cli.main import main\n"
PROGRAM = "if __name__ == '__main__': main()\n"

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the program is started."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def program(tmp_path: Path, folder: Path) -> Program:
    """The program as the installed script starts it, from a folder of its own."""
    script = tmp_path / "bin" / "octnas"
    script.parent.mkdir()

    def run(
        *arguments: str, code: str = PROGRAM, encoding: str = "utf-8", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        script.write_text(BEGIN + code)
        given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        if "PYTHONSAFEPATH" not in environment:
            given.pop("PYTHONSAFEPATH", None)
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=folder,
            env=given,
            capture_output=True,
            encoding=encoding,
            check=False,
        )

    return run


@pytest.fixture
def hostile(folder: Path) -> Path:
    """The folder, with files that have the names of modules and tell when they are run."""
    for name in ("pickle", "random", "torch"):
        (folder / f"{name}.py").write_text("open(__file__ + '.was-run', 'w')\n")
    return folder


def test_doctor_runs_nothing_of_the_working_directory(program: Program, hostile: Path) -> None:
    done = program("doctor")
    assert "  octnas " in done.stdout, done.stderr
    assert "Random" not in done.stdout
    assert not list(hostile.glob("*.was-run"))


def test_processes_that_it_starts_import_nothing_of_the_working_directory(
    program: Program, hostile: Path
) -> None:
    """As those that train together do."""
    code = (
        "if __name__ == '__main__':\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print, args=('begun',))\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = program("--version", code=code)
    assert "begun" in done.stdout, done.stderr
    assert not list(hostile.glob("*.was-run"))


def test_a_path_that_is_chosen_stays(program: Program) -> None:
    code = "try: main()\nfinally: print(repr(os.environ['PYTHONSAFEPATH']))\n"
    assert program("--version", code=code, PYTHONSAFEPATH="").stdout.endswith("''\n")


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "3?224?224"), ("latin-1", "3×224×224")])
def test_a_terminal_that_does_not_hold_every_letter_shows_the_others(
    program: Program, encoding: str, shown: str
) -> None:
    # Click writes UTF-8 where the encoding is ASCII.
    read = "latin-1" if encoding == "latin-1" else "utf-8"
    done = program("cost", "resnet18", PYTHONIOENCODING=encoding, encoding=read)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "site           | ? | low channels" in done.stdout
    refused = program("cost", "résnet×α", PYTHONIOENCODING=encoding, encoding=read)
    assert refused.returncode == 2
    assert refused.stderr.startswith("octnas: backbone: found 'r")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["doctor", "cost resnet18", "--version"])
def test_a_working_directory_that_is_gone_is_one_line(
    program: Program, folder: Path, command: str
) -> None:
    code = f"if __name__ == '__main__':\n    os.rmdir({str(folder)!r})\n    main()\n"
    done = program(*command.split(), code=code)
    assert done.returncode == 2
    assert done.stderr == "octnas: the working directory no longer exists; change to another\n"
    assert done.stdout == ""
