import json
import os
from pathlib import Path

import pytest

from octnas.errors import TrackingError
from octnas.tracking.outbox import BusyError, Outbox


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    found = Outbox(tmp_path / "run" / "mlflow")
    found.open()
    return found


def test_records_are_read_in_order_from_any_offset(outbox: Outbox) -> None:
    for step in range(3):
        outbox.add("metrics", "a", rows=[[step, {"α": 0.5}]], once=True)
    entries = list(outbox.entries())
    assert [entry.values for entry in entries] == [
        {"rows": [[step, {"α": 0.5}]], "once": True} for step in range(3)
    ]
    assert len({entry.id for entry in entries}) == 3
    assert entries[-1].end == outbox.path.stat().st_size
    assert list(outbox.entries(entries[0].end)) == entries[1:]
    assert all(json.loads(line)["schema"] == 1 for line in outbox.path.read_text().splitlines())


def test_an_unfinished_line_is_not_a_record(outbox: Outbox) -> None:
    outbox.add("finish", "a", failed=False)
    whole = outbox.path.stat().st_size
    with outbox.path.open("a") as file:
        file.write('{"schema": 1, "id"')
    assert len(list(outbox.entries())) == 1
    outbox.open()
    assert outbox.path.stat().st_size == whole
    outbox.add("finish", "b", failed=False)
    assert [entry.key for entry in outbox.entries()] == ["a", "b"]


def test_a_link_among_the_kept_files_is_removed_but_not_its_target(
    outbox: Outbox, tmp_path: Path
) -> None:
    """As after a process that was killed before it added the record."""
    outbox.add("finish", "a", failed=False)
    (tmp_path / "run" / "precious").mkdir()
    (outbox.folder / "files").mkdir()
    (outbox.folder / "files" / "unknown").symlink_to(tmp_path / "run" / "precious")
    outbox.open()
    assert not list((outbox.folder / "files").iterdir())
    assert (tmp_path / "run" / "precious").is_dir()


@pytest.mark.parametrize("line", ['{"schema": 2}', "[]", "{", '{"schema": 1, "id": "x"}'])
def test_an_invalid_line_is_reported_by_its_offset(outbox: Outbox, line: str) -> None:
    outbox.add("finish", "a", failed=False)
    with outbox.path.open("a") as file:
        file.write(line + "\n")
    end = outbox.path.stat().st_size
    with pytest.raises(TrackingError, match=rf"outbox\.jsonl: the line that ends at byte {end:,}"):
        list(outbox.entries())


def test_a_file_stays_as_it_was_recorded(outbox: Outbox, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    outbox.add("artifact", "a", folder, folder="")
    # As `octnas.io.files.write_bytes` replaces a file, and --fresh removes a folder.
    (folder / "new").write_text("new")
    (folder / "new").replace(folder / "weights")
    [entry] = outbox.entries()
    kept = outbox.file(entry)
    assert kept is not None
    assert (kept / "weights").read_text() == "old"
    assert kept.name == "model"
    outbox.discard(entry)
    assert outbox.file(entry) == folder
    (folder / "weights").unlink()
    folder.rmdir()
    assert outbox.file(entry) is None


def test_a_run_directory_may_be_moved(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "run" / "config.yaml").write_text("x")
    outbox.add("artifact", "a", tmp_path / "run" / "config.yaml", folder="")
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Outbox(tmp_path / "moved" / "mlflow")
    [entry] = moved.entries()
    moved.discard(entry)
    assert moved.file(entry) == tmp_path / "moved" / "config.yaml"


def test_files_are_copied_without_hard_links(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "file").write_text("old")
    outbox.add("artifact", "a", tmp_path / "file", folder="")
    (tmp_path / "file").write_text("new")
    [entry] = outbox.entries()
    kept = outbox.file(entry)
    assert kept is not None
    assert kept.read_text() == "old"


def test_files_without_a_record_are_removed(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outbox.add("artifact", "a", tmp_path / "file", folder="")
    (outbox.folder / "files" / "lost").mkdir()
    outbox.open()
    [entry] = outbox.entries()
    assert [kept.name for kept in (outbox.folder / "files").iterdir()] == [entry.id]


def test_one_process_sends_at_a_time(outbox: Outbox) -> None:
    other = Outbox(outbox.folder)
    sends = pytest.raises(BusyError, match="another process is sending")
    with outbox.sending(), sends, other.sending(0.3):
        pass
    with other.sending():
        pass
