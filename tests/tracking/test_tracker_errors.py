import json
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests

import octnas.tracking.connection as connect
from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.store import AwayError, find_store, tracking_errors
from octnas.tracking.tracker import Tracker
from tests.tracking.conftest import MakeTracker
from tests.tracking.reading import client, failure, found, history, run_id, settled


def test_an_invalid_uri_in_the_environment(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[bad")
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI: http://\[bad: not the"):
        make_tracker()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://", "not the address of a server"),
        ("http:host", "not the address of a server"),
        ("http://host:port", "not the address of a server"),
        ("https://host:70000", "not the address of a server"),
        ("http://me:pa55/word@host", r"http://me:\*\*\*@host: not the address .*percent-encode"),
        ("http://me:12/pa55word@host", "'@' after the host; percent-encode"),
        ("mlruns", "MLflow no longer records runs in plain folders; give an SQLite file"),
        ("file:///tmp/mlruns", "MLflow no longer records runs in plain folders"),
    ],
)
def test_malformed_uris_are_refused_at_once(
    make_tracker: MakeTracker, uri: str, expected: str
) -> None:
    with pytest.raises(TrackingError, match=expected) as caught:
        make_tracker(uri=uri)
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://host/x", "unknown kind of store; allowed: sqlite, postgresql"),
        ("postgresql://me:pa:55@word@host:x/db", "not a database URL; percent-encode"),
        ("mysql+nodriver://me:pa55word@host/db", "not a database URL"),
        ("sqlite://", "an in-memory database keeps nothing"),
    ],
)
def test_impossible_stores(make_tracker: MakeTracker, uri: str, expected: str) -> None:
    text = failure(make_tracker(uri=uri))
    assert expected in text
    assert "word" not in text.replace("password", "")


def test_a_missing_driver(make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    text = failure(make_tracker(uri="postgresql+psycopg2://me:pa55word@host/db"))
    assert "tracking.uri: postgresql+psycopg2://me:***@host/db: needs the Python package" in text
    assert "'psycopg2'" in text


@pytest.mark.parametrize(
    ("problem", "expected"),
    [(FileExistsError(), "theirs"), (OSError(95, "Operation not supported"), "ours")],
)
def test_a_new_database_never_replaces_that_of_another_process(
    problem: OSError, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hardlink_to(self: Path, target: Path) -> None:
        raise problem

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    (tmp_path / "mlflow.db").write_text("theirs")
    (tmp_path / "new").write_text("ours")
    connect._publish(tmp_path / "new", tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == expected


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runs = tmp_path / "file" / "runs"
    database = TrackingSettings(uri=f"sqlite:///{runs}/mlflow.db")
    tracker = Tracker(database, experiment="e", directory=tmp_path / "one")
    text = failure(tracker)
    assert text.startswith(f"tracking.uri: sqlite:///{runs}/mlflow.db: ")
    assert "cannot use the SQLite file: Not a directory" in text


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    # /proc refuses root as well.
    folder = Path("/proc/self") if os.geteuid() == 0 else tmp_path
    if os.geteuid() != 0:
        folder.chmod(0o500)
    database = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    tracker = Tracker(database, experiment="e", directory=tmp_path / "one")
    started = time.perf_counter()
    assert "cannot use the SQLite file: " in failure(tracker)
    assert time.perf_counter() - started < 5


def test_a_path_that_an_sqlite_uri_cannot_hold(tmp_path: Path) -> None:
    store = tmp_path / "100%25"
    with pytest.raises(TrackingError, match="cannot hold a path with '%'"):
        Tracker(TrackingSettings(), experiment="e", directory=store / "one")


def test_a_file_that_is_not_a_database(make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "mlflow.db").write_text("something else " * 100)
    assert "cannot use the SQLite file: file is not a database" in failure(make_tracker())
    assert (runs / "mlflow.db").read_text().startswith("something else")


def test_a_database_of_another_program(make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "mlflow.db").unlink()
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    assert "an SQLite database, but not one of MLflow's" in failure(make_tracker())


def test_a_database_of_another_mlflow(make_tracker: MakeTracker, runs: Path) -> None:
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        database.commit()
    text = failure(make_tracker())
    assert "the database belongs to another version of MLflow than 3." in text
    assert "mlflow db upgrade" in text


def test_a_locked_database_is_tried_again(
    make_tracker: MakeTracker, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "LOCK_WAIT", 0.1)
    lines: list[str] = []
    tracker = make_tracker(say=lines.append)
    with closing(sqlite3.connect(runs / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.start("a", "A")
    [line] = lines
    assert "database is locked" in line
    assert found(runs, "a").info.run_name == "A"


def test_a_deleted_experiment(make_tracker: MakeTracker, runs: Path) -> None:
    from mlflow import MlflowClient

    make_tracker().start("a", "A")
    settled(runs)
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    text = failure(make_tracker())
    assert "experiment 'digits' was deleted in MLflow; restore it, or set tracking.exp" in text


def test_a_store_that_was_moved(make_tracker: MakeTracker, runs: Path, tmp_path: Path) -> None:
    make_tracker().start("a", "A")
    settled(runs)
    moved = runs.rename(tmp_path / "moved")
    tracker = Tracker(TrackingSettings(), experiment="digits", directory=moved / "digits")
    text = failure(tracker)
    assert f"'digits' belong to {runs}/mlartifacts; move it back" in text
    tracker = Tracker(TrackingSettings(), experiment="new", directory=moved / "digits")
    tracker.start("a", "A")
    tracker.close()


def test_a_refused_record_is_noted_and_blocks_nothing(
    make_tracker: MakeTracker, runs: Path
) -> None:
    lines: list[str] = []
    tracker = make_tracker(say=lines.append)
    tracker.start("a", "A")
    tracker.metrics("a", {"before": 1.0}, 0)
    tracker.metrics("a", {"../loss": 1.0}, 0)
    tracker.metrics("a", {"behind": 1.0}, 0)
    tracker.close()
    assert found(runs, "a").data.metrics == {"before": 1.0, "behind": 1.0}
    assert found(runs, "a").info.status == "FINISHED"
    [line] = lines
    assert line.startswith("MLflow: refused 1 records, the last one: ")
    assert "must not resolve to other names" in line
    [refused] = json.loads((runs / "digits" / "tracking.json").read_text())["refused"]
    assert (refused["kind"], refused["key"]) == ("metrics", "a")
    assert len(history(runs, "a", "before")) == 1


def answered(status: int) -> requests.HTTPError:
    """What MLflow raises for such an answer of an artifact store."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error: no", response=response)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_artifact_blocks_nothing(
    make_tracker: MakeTracker,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    def refuse(*_: object) -> None:
        raise answered(status)

    for name in ("log_artifact", "log_model_artifacts"):
        monkeypatch.setattr(f"mlflow.MlflowClient.{name}", refuse)
    folder, lines = tmp_path / "model", list[str]()
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"w")
    tracker = make_tracker(say=lines.append)
    tracker.start("a", "A")
    tracker.artifact("a", folder)
    tracker.model("a", folder, digest="5a3e" * 16)
    tracker.metrics("a", {"behind": 1.0}, 0)
    tracker.close()
    assert found(runs, "a").data.metrics == {"behind": 1.0}
    [line] = lines
    assert line.startswith("MLflow: refused 2 records, the last one: ")
    assert f"{status} Client Error" in line
    refused = json.loads((runs / "digits" / "tracking.json").read_text())["refused"]
    assert [entry["kind"] for entry in refused] == ["artifact", "model"]


@pytest.mark.parametrize(
    ("status", "away"), [(401, False), (403, False), (408, True), (429, True), (503, True)]
)
def test_errors_that_do_not_blame_the_record_refuse_nothing(
    make_tracker: MakeTracker,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    away: bool,
) -> None:
    def answer(*_: object) -> None:
        raise answered(status)

    tracker = make_tracker(say=(lines := list[str]()).append)
    tracker.start("a", "A")
    (tmp_path / "file").write_text("text")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", answer)
        tracker.artifact("a", tmp_path / "file")
        tracker.metrics("a", {"behind": 1.0}, 0)
        tracker.close()
    assert "records are not sent yet (" in lines[0]
    assert f"{status} Client Error" in lines[0]
    tracker.start("a", "A")
    tracker.close()
    assert found(runs, "a").data.metrics == {"behind": 1.0}
    store = find_store(TrackingSettings(), runs)
    with pytest.raises(AwayError if away else TrackingError) as caught, tracking_errors(store):
        answer()
    assert isinstance(caught.value, AwayError) == away


def test_records_of_a_run_that_was_deleted_meanwhile(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    tracker.start("a", "A")
    client(runs).delete_run(run_id(runs, "a"))
    tracker.metrics("a", {"x": 1.0}, 0)
    tracker.start("b", "B")
    tracker.close()
    assert found(runs, "b").info.status == "FINISHED"
    refused = json.loads((runs / "digits" / "tracking.json").read_text())["refused"]
    assert {entry["key"] for entry in refused} == {"a"}
