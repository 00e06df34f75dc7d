"""Folders that are no run directories, and those of runs that were killed as they began."""

import subprocess
import sys
from pathlib import Path

import pytest

from octnas.errors import OctnasError, RunDirectoryError
from octnas.pipeline.run import check_place
from octnas.runtime.directory import RunDirectory
from octnas.runtime.lock import held
from tests.pipeline.tiny import open_tiny

MESSAGE = "not a run directory, and not empty; give a new or empty folder"


def contents(folder: Path) -> dict[str, str | None]:
    return {str(path): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "names",
    [
        ("config.yaml", "data/precious.txt", "report/thesis.tex"),
        ("config.yaml",),
        (".config.yaml.draft-1",),
        ("data/stage.txt",),
        (".git/HEAD",),
    ],
)
@pytest.mark.parametrize("fresh", ["data", None])
def test_what_is_somebody_elses_is_not_touched(
    tmp_path: Path, names: tuple[str, ...], fresh: str | None
) -> None:
    place = tmp_path / "runs" / "tiny"
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"tiny: {MESSAGE}"):
        open_tiny(tmp_path, fresh=fresh)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 9, "runs": []}', '{"runs": []}', "x"])
def test_a_record_of_another_kind_makes_no_run_directory(tmp_path: Path, text: str) -> None:
    place = tmp_path / "runs" / "tiny"
    (place / "data").mkdir(parents=True)
    (place / "run.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(OctnasError, match=r"run\.json: "):
        open_tiny(tmp_path, fresh="data")
    assert contents(tmp_path) == before


def test_empty_folders_and_those_of_runs_are_taken(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "tiny"
    check_place(place)
    (place / "lost+found").mkdir(parents=True)
    check_place(place)
    with held(place):
        pass
    # Of another run's `ranking.truth_from`.
    RunDirectory(place).begin("truth", {})
    check_place(place)
    (place / "truth" / "stage.json").unlink()
    with pytest.raises(RunDirectoryError, match=MESSAGE):
        check_place(place)
    (place / "truth").rmdir()
    open_tiny(tmp_path)
    (place / "notes.txt").write_text("of whoever looks after the run")
    open_tiny(tmp_path, fresh="data")


PROGRAM = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from octnas.pipeline.run import open_run
from octnas.runtime.progress import Quiet
from tests.pipeline.tiny import EXPERIMENT, TINY

place = Path(sys.argv[1])

def life(moment):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = itertools.count()

    def look(event, arguments):
        # Everything that is done to files of the run directory.
        if event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.chmod"):
            if str(place) in str(arguments[0]) and next(count) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    given = {"overrides": TINY, "run_dir": place, "progress": Quiet(), "fresh": "data"}
    with open_run(EXPERIMENT, **given):
        pass
    os._exit(0)

killed = 0
while life(killed) == -signal.SIGKILL:
    assert life(-1) == 0, killed
    shutil.rmtree(place)
    killed += 1
print(killed)
"""


def test_a_run_that_was_killed_as_it_began_resumes(tmp_path: Path) -> None:
    """At each of its first steps."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
