import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import octnas.tracking.connect as connect
from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from tests.tracking.conftest import MakeTracker


def failure(tracker: Tracker) -> str:
    """The error of a start, which is one line."""
    with pytest.raises(TrackingError) as caught:
        tracker.start("a", "A")
    # A traceback would show what the message hides.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    text = str(caught.value)
    assert "\n" not in text
    return text


@contextmanager
def serve(status: int, body: str) -> Iterator[str]:
    """A server that answers everything alike; its ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_dead_server_is_reported_at_once(
    make_tracker: MakeTracker, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        started = time.perf_counter()
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert time.perf_counter() - started < 5
    assert text.startswith(f"tracking.uri: http://me:***@{host}: no MLflow server answers")
    assert "Connection refused" in text
    assert "tracking.enabled: false" in text
    assert "".join(capfd.readouterr()) == ""


def test_a_server_that_never_answers_is_reported_soon(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "FIRST_ANSWER", 1)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.perf_counter()
        text = failure(make_tracker(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert time.perf_counter() - started < 4
    assert "no MLflow server answers there (timed out)" in text


def test_the_environment_is_blamed_for_its_uri(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[bad")
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI: http://\[bad: is not the"):
        make_tracker()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, "You are not authenticated.", "refuses access (HTTP 401: You are not authent"),
        (403, "Invalid Host header", "refuses access (HTTP 403: Invalid Host header)"),
        (404, "<html>Not Found</html>", "is no MLflow server (HTTP 404: <html>Not Found</html>)"),
        (200, "<html>Please log in</html>", "is no MLflow server (HTTP 200: <html>Please log"),
        (503, "try later", "is no MLflow server (HTTP 503: try later)"),
    ],
)
def test_servers_that_are_of_no_use(
    make_tracker: MakeTracker, status: int, body: str, expected: str
) -> None:
    with serve(status, body) as host:
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert expected in text
    assert "pa55word" not in text


def test_a_wrong_password_is_named_as_such(make_tracker: MakeTracker) -> None:
    with serve(401, "") as host:
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert "correct user name and password in the URI, or MLFLOW_TRACKING_USERNAME" in text


def test_a_refusal_of_the_server_is_one_line(make_tracker: MakeTracker) -> None:
    known = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"})
    with serve(404, known) as host:  # answers GET like MLflow, but refuses to create anything
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert f"tracking.uri: http://me:***@{host}: MLflow: " in text
    assert "501" in text
    assert "pa55word" not in text


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://", "is not the address of a server"),
        ("http:host", "is not the address of a server"),
        ("http://host:port", "is not the address of a server"),
        ("https://host:70000", "is not the address of a server"),
        ("http://me:pa55/word@host", r"http://me:\*\*\*@host: is not the address .*percent-encode"),
        ("http://me:12/pa55word@host", "holds an '@' behind the host; percent-encode"),
        ("mlruns", "MLflow no longer records runs in plain folders; give an SQLite file"),
        ("file:///tmp/mlruns", "MLflow no longer records runs in plain folders"),
    ],
)
def test_malformed_uris_are_refused_before_anything_is_done(
    make_tracker: MakeTracker, uri: str, expected: str
) -> None:
    with pytest.raises(TrackingError, match=expected) as caught:
        make_tracker(uri=uri)
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://host/x", "MLflow knows no such store; allowed: sqlite, postgresql"),
        ("postgresql://me:pa:55@word@host:x/db", "is not a database's URL; percent-encode"),
        ("mysql+nodriver://me:pa55word@host/db", "is not a database's URL"),
        ("sqlite://", "a database in memory keeps nothing"),
    ],
)
def test_stores_that_cannot_be(make_tracker: MakeTracker, uri: str, expected: str) -> None:
    text = failure(make_tracker(uri=uri))
    assert expected in text
    assert "word" not in text.replace("password", "")


def test_a_missing_driver(make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    text = failure(make_tracker(uri="postgresql+psycopg2://me:pa55word@host/db"))
    assert "tracking.uri: postgresql+psycopg2://me:***@host/db: needs the Python package" in text
    assert "'psycopg2'" in text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runs = tmp_path / "file" / "runs"
    tracker = Tracker(TrackingSettings(), experiment="e", store=runs, ids_file=tmp_path / "ids")
    text = failure(tracker)
    assert text.startswith(f"sqlite:///{runs}/mlflow.db: the SQLite file cannot be used: Not a dir")


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root may do anything")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    # /proc refuses root as well.
    folder = Path("/proc/self") if os.geteuid() == 0 else tmp_path
    if os.geteuid() != 0:
        folder.chmod(0o500)
    tracker = Tracker(TrackingSettings(), experiment="e", store=folder, ids_file=tmp_path / "ids")
    started = time.perf_counter()
    assert "the SQLite file cannot be used: " in failure(tracker)
    assert time.perf_counter() - started < 5


def test_a_path_that_sqlite_cannot_take(tmp_path: Path) -> None:
    store = tmp_path / "100%25"
    with pytest.raises(TrackingError, match="cannot hold a path with '%'"):
        Tracker(TrackingSettings(), experiment="e", store=store, ids_file=store / "ids")


def test_a_file_that_is_no_database(make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "mlflow.db").write_text("something else " * 100)
    assert "the SQLite file cannot be used: file is not a database" in failure(make_tracker())
    assert (runs / "mlflow.db").read_text().startswith("something else")


def test_a_database_of_something_else(make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "mlflow.db").unlink()
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    assert "is an SQLite database, but not one of MLflow's" in failure(make_tracker())


def test_a_database_of_another_mlflow(make_tracker: MakeTracker, runs: Path) -> None:
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        database.commit()
    text = failure(make_tracker())
    assert "the database belongs to another version of MLflow than 3." in text
    assert "mlflow db upgrade" in text


def test_a_locked_database(
    make_tracker: MakeTracker, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "LOCK_WAIT", 0.1)
    with closing(sqlite3.connect(runs / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in failure(make_tracker())


def test_an_experiment_that_was_deleted(make_tracker: MakeTracker, runs: Path) -> None:
    from mlflow import MlflowClient

    make_tracker().start("a", "A")
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    text = failure(make_tracker())
    assert "experiment 'digits' was deleted in MLflow; restore it, or set tracking.exp" in text


def test_a_store_that_was_moved(make_tracker: MakeTracker, runs: Path, tmp_path: Path) -> None:
    make_tracker().start("a", "A")
    moved = runs.rename(tmp_path / "moved")
    ids = moved / "digits" / "tracking.json"
    tracker = Tracker(TrackingSettings(), experiment="digits", store=moved, ids_file=ids)
    text = failure(tracker)
    assert f"'digits' belong into {runs}/mlartifacts; move it back" in text
    Tracker(TrackingSettings(), experiment="new", store=moved, ids_file=ids).start("a", "A")


def test_names_that_mlflow_refuses(make_tracker: MakeTracker) -> None:
    tracker = make_tracker()
    tracker.start("a", "A")
    with pytest.raises(TrackingError, match=r"MLflow: .*must not resolve to other names"):
        tracker.metrics("a", {"../loss": 1.0}, 0)


def test_debug_logs_hold_no_password() -> None:
    code = """
import logging
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from octnas.tracking.failures import tracking_errors
settings = TrackingSettings(uri="http://me:pa55%20word@127.0.0.1:9")
tracker = Tracker(settings, experiment="e", store=Path(), ids_file=Path("ids.json"))
for _ in range(2):
    try:
        tracker.start("a", "A")
    except TrackingError as error:
        logging.exception("failed")
try:
    with tracking_errors(tracker._store):
        raise ValueError("http://me:pa55%20word@127.0.0.1:9, that is 'pa55 word' or pa55%20word")
except TrackingError:
    logging.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no MLflow server answers" in done.stderr
    assert "that is '***' or ***" in done.stderr
    assert "ValueError" in done.stderr
    assert "pa55" not in done.stderr
    assert done.stdout == ""
