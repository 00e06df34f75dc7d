"""A real ``mlflow server`` behind a proxy that requires a password."""

import base64
import json
import math
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from tests.tracking.reading import settled
from tests.tracking.servers import free_port, get, mlflow_server, post, running

pytestmark = pytest.mark.slow

PASSWORD = "pa55@w:r/d%ü"
ENCODED = "pa55%40w%3Ar%2Fd%25%C3%BC"


@contextmanager
def guarded(port: int) -> Iterator[int]:
    """A proxy that requires the user ``me`` and `PASSWORD`; yields its port."""
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
    directory = folder / "run"
    return Tracker(TrackingSettings(uri=uri), experiment="digits", directory=directory)


@pytest.fixture
def server(tmp_path: Path, migrated: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    port = free_port()
    with mlflow_server(folder, port) as process:
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
        tracker.close(failed=True)
        again = make_tracker(client, uri)
        again.start("experiment", "digits", params={"uri": uri})
        settled(client)
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
    assert by_name["digits"]["info"]["status"] == "RUNNING"  # resumed
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


def test_the_view_command_shows_runs_and_artifacts(tmp_path: Path, migrated: Path) -> None:
    runs = tmp_path / "my runs #1"
    runs.mkdir()
    (runs / "mlflow.db").write_bytes(migrated.read_bytes())
    tracker = make_tracker(runs, "")
    tracker.start("a", "A")
    tracker.artifact("a", Path(__file__), "code")
    tracker.close()
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
