"""Against a real ``mlflow server``, behind a proxy that asks for a password."""

import base64
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker

pytestmark = pytest.mark.slow

PASSWORD = "pa55@w:r/d%ü"
ENCODED = "pa55%40w%3Ar%2Fd%25%C3%BC"


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process until it answers, and its end."""
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "server.log").read_text()
            if health(port):
                break
            time.sleep(0.25)
        yield process
    finally:
        process.terminate()  # mlflow passes it on to its workers
        process.wait(timeout=30)


def health(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def post(port: int, endpoint: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/{endpoint}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as response:
        return bytes(response.read())


@contextmanager
def guarded(port: int) -> Iterator[int]:
    """A proxy to a port that demands the user ``me`` and `PASSWORD`; its own port."""
    wanted = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    latin = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode("latin1")).decode()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            status, text = 401, b"You are not authenticated."
            if self.headers["Authorization"] in (wanted, latin):
                status, text = self.forward(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def forward(self, body: bytes) -> tuple[int, bytes]:
            url = f"http://127.0.0.1:{port}{self.path}"
            headers = {"Content-Type": self.headers.get("Content-Type") or "text/plain"}
            request = urllib.request.Request(url, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy.server_port
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def make_tracker(folder: Path, uri: str) -> Tracker:
    ids = folder / "run" / "tracking.json"
    return Tracker(TrackingSettings(uri=uri), experiment="digits", store=folder, ids_file=ids)


@pytest.fixture
def server(tmp_path: Path, migrated: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with running(command, port, folder) as process:
        yield port, process


def test_a_server_behind_a_password(
    server: tuple[int, subprocess.Popen[bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port, _ = server
    client = tmp_path / "client"
    model = client / "model"
    model.mkdir(parents=True)
    (model / "weights.bin").write_bytes(bytes(range(256)))
    with guarded(port) as entrance:
        uri = f"http://me:{ENCODED}@127.0.0.1:{entrance}"
        tracker = make_tracker(client, uri)
        assert tracker.view_command() == f"http://me:***@127.0.0.1:{entrance}"
        tracker.start("experiment", "digits", params={"uri": uri, "x": {"α": 1}}, tags={"u": uri})
        tracker.start("nested", "N", parent="experiment")
        values = [math.nan, math.inf, 0.5]
        tracker.batch("nested", [(step, {"loss": x}) for step, x in enumerate(values)])
        tracker.batch("nested", [(step, {"many": step}) for step in range(2500)])
        tracker.artifact("nested", model, "exports")
        tracker.finish("nested")
        tracker.finish("experiment", failed=True)
        make_tracker(client, uri).start("experiment", "digits", params={"uri": uri})
        with pytest.raises(TrackingError, match=r"refuses access .*correct user name and password"):
            make_tracker(client, f"http://me:wrong55@127.0.0.1:{entrance}").start("a", "A")
    ids = json.loads((client / "run" / "tracking.json").read_text())["runs"]
    check_records(port, ids)
    said = "".join(capfd.readouterr())
    assert said == ""
    for secret in (PASSWORD, ENCODED, "pa55", "wrong55"):
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def check_records(port: int, ids: dict[str, str]) -> None:
    experiment = json.loads(
        get(port, "api/2.0/mlflow/experiments/get-by-name?experiment_name=digits")
    )["experiment"]
    runs = post(port, "runs/search", {"experiment_ids": [experiment["experiment_id"]]})["runs"]
    by_name = {run["info"]["run_name"]: run for run in runs}
    assert set(by_name) == {"digits", "N"}
    assert len(runs) == 2
    assert by_name["digits"]["info"]["status"] == "RUNNING"  # went on
    assert by_name["N"]["info"]["status"] == "FINISHED"
    tags = {tag["key"]: tag["value"] for tag in by_name["N"]["data"]["tags"]}
    assert tags["mlflow.parentRunId"] == ids["experiment"]
    query = f"run_id={ids['nested']}&metric_key=loss"
    points = json.loads(get(port, f"api/2.0/mlflow/metrics/get-history?{query}"))["metrics"]
    nan, high, half = (float(point["value"]) for point in points)
    assert math.isnan(nan)
    assert (high, half) == (pytest.approx(1.7976931348623157e308), 0.5)
    query = f"path=exports/model/weights.bin&run_uuid={ids['nested']}"
    assert get(port, f"get-artifact?{query}") == bytes(range(256))


def test_a_server_that_dies_in_between(
    server: tuple[int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    port, process = server
    tracker = make_tracker(tmp_path / "client", f"http://127.0.0.1:{port}")
    tracker.start("a", "A")
    process.terminate()
    process.wait(timeout=30)
    started = time.perf_counter()
    with pytest.raises(TrackingError, match="MLflow: Connection refused"):
        tracker.metrics("a", {"x": 1.0}, 0)
    assert time.perf_counter() - started < 8


def test_the_view_command_shows_runs_and_artifacts(tmp_path: Path, migrated: Path) -> None:
    runs = tmp_path / "my runs #1"
    runs.mkdir()
    (runs / "mlflow.db").write_bytes(migrated.read_bytes())
    tracker = make_tracker(runs, "")
    tracker.start("a", "A")
    tracker.artifact("a", Path(__file__), "code")
    port = free_port()
    command = tracker.view_command().replace("--port 5000", f"--port {port}")
    assert str(port) in command
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Through a shell, as a user does; "exec env" so that the process is mlflow's.
    shell = ["sh", "-c", f"exec env {command}"]
    with running(shell, port, elsewhere):
        assert [file.name for file in elsewhere.iterdir()] == ["server.log"]
        listed = post(port, "experiments/search", {"max_results": 10})["experiments"]
        ids = {entry["name"]: entry["experiment_id"] for entry in listed}
        [run] = post(port, "runs/search", {"experiment_ids": [ids["digits"]]})["runs"]
        assert run["info"]["run_name"] == "A"
        query = f"path=code/{Path(__file__).name}&run_uuid={run['info']['run_id']}"
        assert get(port, f"get-artifact?{query}") == Path(__file__).read_bytes()
        page = get(port, "")
        assert b"<title>MLflow</title>" in page
