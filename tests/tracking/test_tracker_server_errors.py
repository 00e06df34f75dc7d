import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import octnas.tracking.connection as connect
from tests.tracking.conftest import MakeTracker
from tests.tracking.reading import failure


@contextmanager
def serve(status: int, body: str) -> Iterator[str]:
    """A server that always gives the same answer; yields its ``host:port``."""

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


def warning(make_tracker: MakeTracker, uri: str) -> str:
    """The line about a server that is unreachable at the start, which is no error."""
    lines: list[str] = []
    make_tracker(uri=uri, say=lines.append).start("a", "A")
    [line] = lines
    assert "\n" not in line
    assert line.endswith(". The run continues, and its records are kept")
    return line


def test_a_dead_server_is_reported_at_once(
    make_tracker: MakeTracker, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        started = time.perf_counter()
        text = warning(make_tracker, f"http://me:pa55word@{host}")
    assert time.perf_counter() - started < 5
    assert text.startswith(f"MLflow: tracking.uri: http://me:***@{host}: no MLflow server answers")
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
        text = warning(make_tracker, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.perf_counter() - started < 4
    assert "no MLflow server answers (timed out)" in text


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, "You are not authenticated.", "refuses access (HTTP 401: You are not authent"),
        (403, "Invalid Host header", "refuses access (HTTP 403: Invalid Host header)"),
        (404, "<html>Not Found</html>", "not an MLflow server (HTTP 404: <html>Not Found</html>)"),
        (200, "<html>Please log in</html>", "not an MLflow server (HTTP 200: <html>Please log"),
    ],
)
def test_unusable_servers(make_tracker: MakeTracker, status: int, body: str, expected: str) -> None:
    with serve(status, body) as host:
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert expected in text
    assert "pa55word" not in text


def test_a_wrong_password(make_tracker: MakeTracker) -> None:
    with serve(401, "") as host:
        text = failure(make_tracker(uri=f"http://me:pa55word@{host}"))
    assert "correct user name and password in the URI, or set MLFLOW_TRACKING_USERNAME" in text


def test_a_server_with_an_internal_error_counts_as_unreachable(make_tracker: MakeTracker) -> None:
    with serve(503, "try later") as host:
        text = warning(make_tracker, f"http://me:pa55word@{host}")
    assert "the server reports a problem (HTTP 503: try later)" in text
    assert "pa55word" not in text


def test_an_error_of_the_server_is_one_line(make_tracker: MakeTracker) -> None:
    known = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"})
    with serve(404, known) as host:  # answers GET like MLflow, but has no way to create anything
        text = warning(make_tracker, f"http://me:pa55word@{host}")
    assert f"tracking.uri: http://me:***@{host}: MLflow: " in text
    assert "501" in text
    assert "pa55word" not in text


def test_debug_logs_hold_no_password(tmp_path: Path) -> None:
    code = """
import logging
import sys
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from octnas.tracking.store import tracking_errors
settings = TrackingSettings(uri="http://me:pa55%20word@127.0.0.1:9")
tracker = Tracker(settings, experiment="e", directory=Path(sys.argv[1]), say=logging.warning)
for _ in range(2):
    tracker.start("a", "A")
tracker.close()
try:
    with tracking_errors(tracker._store):
        raise ValueError("http://me:pa55%20word@127.0.0.1:9, that is 'pa55 word' or pa55%20word")
except TrackingError:
    logging.exception("failed")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no MLflow server answers" in done.stderr
    assert "that is '***' or ***" in done.stderr
    assert "ValueError" in done.stderr
    assert "pa55" not in done.stderr
    assert done.stdout == ""
