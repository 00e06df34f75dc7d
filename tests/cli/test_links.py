"""Links that lead out of a run directory: what they lead to is never removed."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Octnas
from tests.pipeline.tiny import with_store

Contents = dict[str, bytes | None]


@pytest.fixture
def tiny(finished: Path, migrated: Path, tmp_path: Path) -> Path:
    """The run directory of a finished run that a test may write to."""
    shutil.copytree(finished, tmp_path / "copy")
    # A new one keeps its artifacts here, and not where those of the run that is shared are.
    with_store(tmp_path / "copy", migrated)
    return tmp_path / "copy" / "runs" / "tiny"


def contents(folder: Path) -> Contents:
    """All that a folder holds, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def moved(path: Path, place: Path) -> None:
    """Put a file or folder of a run elsewhere, beside what is precious there, and link it."""
    place.parent.mkdir(parents=True)
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(place)
    elif not path.suffix:
        place.mkdir()
    if place.is_dir():
        (place / "precious").mkdir()
        for name in ("a.png", f".a.draft-{0:08d}", "precious/file"):
            (place / name).write_text("precious")
    else:
        # A last line that is not whole would be cut off.
        with place.open("a") as file:
            file.write("precious")
    path.symlink_to(place)


@pytest.mark.parametrize(
    "linked",
    [
        *("supernet/checkpoints", "mlflow", "export/vanilla", ".draft-0/deep"),
        *("search/study.journal", "looks.jsonl"),
    ],
)
def test_a_link_that_leads_out_is_refused(octnas: Octnas, tiny: Path, linked: str) -> None:
    outside = tiny.parents[2] / "outside"
    # One stage is to be done.
    (tiny / "report" / "stage.json").unlink()
    moved(tiny / linked, outside / Path(linked).name)
    before = contents(outside), contents(tiny)
    for arguments in (["run"], ["run", "--fresh", "supernet"]):
        refused = octnas(arguments[0], str(tiny), *arguments[1:])
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert line.startswith(f"octnas: {tiny / linked}: a link that leads out of the run")
        assert f"to {outside / Path(linked).name}; remove it, replace" in line
        assert (contents(outside), contents(tiny)) == before


@pytest.mark.parametrize(
    "command",
    [
        *("data RUN", "report RUN", "report RUN --watch", "export RUN --budget 1x"),
        "latency networks RUN",
    ],
)
def test_every_command_that_writes_there_refuses_it(
    octnas: Octnas, tiny: Path, command: str
) -> None:
    moved(tiny / "report", tiny.parents[2] / "outside" / "report")
    before = contents(tiny.parents[2])
    refused = octnas(*(str(tiny) if word == "RUN" else word for word in command.split()))
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "report: a link that leads out of the run directory" in refused.err
    assert contents(tiny.parents[2]) == before


def test_links_within_a_run_are_its_own_affair(octnas: Octnas, tiny: Path) -> None:
    moved(tiny / "report" / "figures", tiny / "kept" / "figures")
    moved(tiny / "supernet", tiny / "kept-too" / "supernet")
    (tiny / "search" / "relative").symlink_to(Path("..") / "report")
    (tiny / "search" / "nowhere").symlink_to("nowhere")
    (tiny / "search" / "circle").symlink_to("circle")
    done = octnas("report", str(tiny))
    assert done.code == 0, done.err
    done = octnas("run", str(tiny), "--fresh", "report")
    assert done.code == 0, done.err
    assert (tiny / "report" / "index.html").exists()
    assert (tiny / "kept-too" / "supernet" / "weights.safetensors").exists()


def test_a_run_directory_may_be_a_link(octnas: Octnas, tiny: Path) -> None:
    elsewhere = tiny.parents[2] / "disk" / "tiny"
    elsewhere.parent.mkdir()
    tiny.rename(elsewhere)
    tiny.symlink_to(elsewhere)
    (tiny / "search" / "absolute").symlink_to(tiny / "report")
    (tiny / "search" / "resolved").symlink_to(elsewhere / "report")
    for command in ("run", "report"):
        done = octnas(command, str(tiny))
        assert done.code == 0, done.err
    assert (elsewhere / "report" / "index.html").exists()
