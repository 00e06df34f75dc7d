"""Tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from octnas.errors import DataError, RunDirectoryError
from octnas.io.files import (
    DRAFT,
    LARGEST,
    parse_json,
    read_as,
    read_json,
    read_regular,
    remove_all_drafts,
    remove_drafts,
    remove_tree,
    write_json,
    write_text,
)
from tests.mutations import DEEP


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
        "import os, signal, sys; from pathlib import Path; from octnas.io.files import *; "
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
        with pytest.raises(OSError, match=f"not a regular file: '{path}'"):
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
    assert read_regular(tmp_path / "other") == b"read"
    # It says that it has no bytes.
    assert read_regular(Path("/proc/self/status")).startswith(b"Name:")


def test_pipes_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, reason in (
        ("pipe", "not a regular file"),
        ("link", "not a regular file"),
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


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share: found {self.share}")


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"]
    size: tuple[int, int]
    inner: tuple[Inner, ...]
    by_name: Mapping[str, float]
    rows: Sequence[Mapping[str, float]]
    maybe: str | None = None
    anything: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "count": 3,
    "kind": "a",
    "size": [2, 3],
    "inner": [{"name": "x"}, {"name": "y", "share": 1}],
    "by_name": {"z": float("inf")},
    "rows": [{"epoch": 1}],
    "maybe": None,
    "anything": {"k": [1, None]},
}


def test_a_document_becomes_what_its_type_says() -> None:
    found = read_as(Outer, json.loads(json.dumps(GOOD)))
    assert found == Outer(
        3,
        "a",
        (2, 3),
        (Inner("x"), Inner("y", 1)),
        {"z": float("inf")},
        [{"epoch": 1}],
        anything={"k": [1, None]},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "Outer.count: found True, allowed: a whole number"),
        ({"count": 1.0}, "Outer.count: found 1.0"),
        ({"count": 10**400}, "Outer.count: a number of 1329 bits, allowed: 63"),
        ({"kind": "c"}, "Outer.kind: found 'c', allowed: one of 'a', 'b'"),
        ({"size": [1]}, "Outer.size: found list, allowed: 2 values"),
        ({"size": "ab"}, "Outer.size: found 'ab', allowed: a list"),
        ({"inner": [{"name": "x"}, {"share": 1}]}, "Outer.inner[1]: name: missing"),
        ({"inner": [None]}, "Outer.inner[0]: found NoneType, allowed: an object"),
        ({"by_name": {"z": "1"}}, "Outer.by_name.z: found '1', allowed: a number"),
        ({"by_name": {"z": -(10**400)}}, "Outer.by_name.z: a number of 1329 bits"),
        ({"by_name": [1]}, "Outer.by_name: found list, allowed: an object"),
        ({"rows": [{"epoch": None}]}, "Outer.rows[0].epoch: found NoneType"),
        ({"maybe": 1}, "Outer.maybe: found 1, allowed: text"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        read_as(Outer, {**GOOD, **change})
    assert str(caught.value).startswith(message)


def test_missing_keys_are_named_and_unknown_ones_ignored() -> None:
    """A newer version may have added some."""
    with pytest.raises(TypeError, match="Outer: count: missing"):
        read_as(Outer, {key: value for key, value in GOOD.items() if key != "count"})
    assert read_as(Outer, {**GOOD, "new": 1}) == read_as(Outer, GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "truncated, or not JSON (Expecting value: line 1 column 1 (char 0))"),
        ('{"schema": 2, "rows": [1', "truncated, or not JSON (Expecting"),
        (b"\xff", "'utf-8' codec can't decode"),
        (DEEP, "nested too deeply"),
        ("[]", "schema: found list, allowed: 1 or 2"),
        ('{"rows": []}', "schema: found NoneType, allowed: 1 or 2"),
        ('{"schema": 3, "rows": []}', "schema: found 3, allowed: 1 or 2"),
        ('{"schema": 2}', "rows: missing"),
        ('{"schema": 2, "rows": {}}', "rows: found dict, allowed: a list"),
        ('{"schema": 2, "rows": [{"name": 1}]}', "rows[0].name: found 1, allowed: text"),
        ('{"schema": 2, "rows": [{"name": "x", "share": 2}]}', "share: found 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_json(path, list[Inner], schema=(1, 2), key="rows", error=DataError, remedy="remove it")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: {message}")
    assert line.endswith("; remove it")


def test_a_file_is_read_as_its_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, {"schema": 1, "rows": [{"name": "α"}], "size": 2})
    assert read_json(path, tuple[Inner, ...], schema=1, key="rows") == (Inner("α"),)
    assert read_json(path, dict[str, Any])["size"] == 2
    with pytest.raises(RunDirectoryError, match="redo its stage with --fresh"):
        read_json(path, Outer, schema=1)


def test_a_key_that_is_there_twice_is_refused() -> None:
    """Python would take the last one, others the first."""
    with pytest.raises(ValueError, match="duplicate key 'a'"):
        parse_json('[{"b": {"a": 1, "c": 2, "a": 1}}]')
    assert parse_json('{"a": {"a": 1}, "b": {"a": 2}}') == {"a": {"a": 1}, "b": {"a": 2}}


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        (r'{"a": ["x\ud800"]}', r"'x\\ud800'"),
        (r'[{"\udfffx": 1}]', r"'\\udfffx'"),
        (r'"\u0000"', r"'\\x00'"),
        (b'["\xed\xa0\x80"]', r"'\\ud800'"),
    ],
)
def test_text_that_cannot_be_written_again_is_refused(document: str | bytes, shown: str) -> None:
    """Half a pair of surrogates is no UTF-8, and no name of a file may hold NUL."""
    with pytest.raises(ValueError, match=f"found a NUL or half a surrogate pair in {shown}"):
        parse_json(document)


def test_text_of_any_script_is_read() -> None:
    assert parse_json(r'{"\ud83d\ude00": ["ü", "\u0001\uffff"]}') == {"😀": ["ü", "\x01\uffff"]}


def test_deep_nesting_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
