import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octnas.files import (
    DRAFT,
    LARGEST,
    read_regular,
    remove_all_drafts,
    remove_drafts,
    remove_tree,
    write_text,
)


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "second")
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from octnas.files import *; "
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
        "write_text(Path(sys.argv[1]), 'second')"
    )
    files = [tmp_path / "tracking.json", tmp_path / "search" / "chosen.json"]
    for path in files:
        write_text(path, "first")
        command = [sys.executable, "-c", program, str(path)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert path.read_text() == "first"
        assert len([one for one in path.parent.iterdir() if path.name in one.name]) == 2
    folder = tmp_path / "search" / "ray" / f".tune{DRAFT}x5mr"
    write_text(folder / "run" / "state.json", "{")
    own = tmp_path / f"notes{DRAFT}2" / "precious"
    write_text(own, "")
    remove_all_drafts(tmp_path, "tracking.json")
    assert own.exists()
    remove_tree(own.parent)

    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    assert left()[1:] == ["chosen.json", "tracking.json"]
    assert not folder.exists()
    remove_drafts(files[0], stale=True)
    assert len(left()) == 3
    remove_drafts(files[0])
    assert left() == ["chosen.json", "tracking.json"]


def test_old_drafts_go_of_files_that_others_may_be_writing(tmp_path: Path) -> None:
    def drafts(name: str) -> list[Path]:
        made = [tmp_path / f".{name}{DRAFT}{age}" for age in (0, 3500, 3700)]
        for path, age in zip(made, (0, 3500, 3700), strict=True):
            path.touch()
            os.utime(path, (time.time() - age, time.time() - age))
        return made

    page, others = drafts("index.html"), drafts("other.html")
    remove_all_drafts(tmp_path, "index.html")
    assert [path.exists() for path in (*page, *others)] == [True, True, False, *[False] * 3]
    page = drafts("index.html")
    remove_drafts(tmp_path / "index.html", stale=True)
    assert [path.exists() for path in page] == [True, True, False]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_of_a_draft_that_is_a_link_the_link_alone_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / "precious", "p")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".folder{DRAFT}1").symlink_to(tmp_path / "elsewhere")
    (folder / f".file{DRAFT}2").symlink_to(tmp_path / "elsewhere" / "precious")
    (folder / f".nothing{DRAFT}3").symlink_to(tmp_path / "nowhere")
    remove_all_drafts(folder)
    assert not list(folder.iterdir())
    assert (tmp_path / "elsewhere" / "precious").read_text() == "p"


@pytest.mark.parametrize("ignore_errors", [False, True])
def test_of_a_link_the_link_alone_is_removed(tmp_path: Path, ignore_errors: bool) -> None:
    write_text(tmp_path / "elsewhere" / "precious", "p")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    remove_tree(tmp_path / "link", ignore_errors=ignore_errors)
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    remove_tree(tmp_path / "folder", ignore_errors=ignore_errors)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "precious").read_text() == "p"


def test_a_folder_that_is_not_there_is_an_error_unless_it_may_be(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing", ignore_errors=True)
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "nothing")


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    """They might never end; nor are files that no document is as large as."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match=f"no regular file, which is needed here: '{path}'"):
            read_regular(path)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nowhere")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(OSError, match=r"larger than 256 MiB: '.*large'"):
        read_regular(tmp_path / "large")
    (tmp_path / "other").symlink_to("file")
    write_text(tmp_path / "file", "read")
    assert read_regular(tmp_path / "other", most=4) == b"read"
    # It says that it has no bytes.
    assert read_regular(Path("/proc/self/status")).startswith(b"Name:")


def test_pipes_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, reason in (
        ("pipe", "no regular file, which is needed here"),
        ("link", "no regular file"),
        ("folder", "Is a directory"),
    ):
        with pytest.raises(OSError, match=reason) as caught:
            write_text(tmp_path / name, "text")
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "nowhere").symlink_to("nothing")
    write_text(tmp_path / "nowhere", "text")
    assert (tmp_path / "nowhere").read_text() == "text"
