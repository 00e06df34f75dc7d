"""Each record is there once on a real ``mlflow server``, however often it is sent."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from octnas.errors import TrackingError
from tests.tracking.halves import HALF, STEPS, begin, end, expected, make_tracker, sync
from tests.tracking.reading import settled
from tests.tracking.servers import free_port, held, mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[int]:
    """The port of a server for the whole module; each test has its own experiment."""
    folder, found = tmp_path_factory.mktemp("server"), free_port()
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    with mlflow_server(folder, found):
        yield found


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


def test_four_processes_log_at_once(port: int, experiment: str, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.tracking.halves import begin, end, make_tracker
directory, lines = Path(sys.argv[1]), []
tracker = make_tracker(directory, int(sys.argv[2]), lines, sys.argv[3])
begin(tracker, directory, directory.name)
end(tracker, directory)
print(lines)
"""
    names = ["a", "b", "c", "d"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name), str(port), experiment],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    said = [process.communicate(timeout=250)[0] for process in processes]
    assert said == ["[]\n"] * 4
    assert held(port, experiment) == expected(*names, experiment=experiment)


def test_a_process_that_is_killed_during_a_run(port: int, experiment: str, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.tracking.halves import begin, make_tracker
directory = Path(sys.argv[1])
tracker = make_tracker(directory, int(sys.argv[2]), None, sys.argv[3])
begin(tracker, directory)
print("begun", flush=True)
for step in range(10**9):
    tracker.metrics("search", {"more": float(step)}, step)
"""
    directory = tmp_path / "runs" / "one"
    arguments = [sys.executable, "-c", code, str(directory), str(port), experiment]
    for number in range(3):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.3 + 0.4 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    sync(directory, port, experiment)
    # Every complete record is there, each step once, although each process repeats them.
    lines = (directory / "mlflow" / "outbox.jsonl").read_bytes().split(b"\n")[:-1]
    entries = [entry for line in lines if (entry := json.loads(line))["kind"] == "metrics"]
    most = max(step for entry in entries for step, row in entry["rows"] if "more" in row)
    assert most > 3
    found = held(port, experiment)
    assert found.names == ["one", "one search"]
    assert found.metrics["one search"]["more"] == list(range(most + 1))
    assert found.metrics["one search"]["loss"] == list(range(HALF))


@pytest.mark.parametrize("forgotten", ["position", "everything"])
def test_records_that_are_sent_twice_are_there_once(
    port: int, experiment: str, tmp_path: Path, forgotten: str
) -> None:
    """A process may be killed between sending a record and saving the position."""
    directory = tmp_path / "runs" / "one"
    tracker = make_tracker(directory, port, experiment=experiment)
    begin(tracker, directory)
    end(tracker, directory)
    whole = expected("one", experiment=experiment)
    assert held(port, experiment) == whole
    file = directory / "tracking.json"
    document = json.loads(file.read_text())
    if forgotten == "position":
        file.write_text(json.dumps({**document, "sent": 0}))
    else:
        file.unlink()
    [line] = sync(directory, port, experiment)
    assert "2 runs" in line
    assert held(port, experiment) == whole
    assert json.loads(file.read_text()) == document


def test_lost_answers(port: int, experiment: str, tmp_path: Path) -> None:
    """The server carries out a request, and the connection breaks before its answer."""
    directory = tmp_path / "runs" / "one"
    with forgetful(port) as (entrance, lost):
        tracker = make_tracker(directory, entrance, experiment=experiment)
        begin(tracker, directory)
        end(tracker, directory)
        for _ in range(60):
            try:
                sync(directory, entrance, experiment)
            except TrackingError:
                continue
            break
        assert lost[0] > 5
    assert held(port, experiment) == expected("one", experiment=experiment)


def test_duplicates_that_a_slow_server_creates_late_are_removed(
    port: int, experiment: str, tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "one"
    tracker = make_tracker(directory, port, experiment=experiment)
    begin(tracker, directory)
    settled(directory.parent)
    client = MlflowClient(f"http://127.0.0.1:{port}")
    there = client.get_experiment_by_name(experiment)
    assert there is not None
    for run in client.search_runs([there.experiment_id]):
        info, tags = run.info, run.data.tags
        client.create_run(there.experiment_id, info.start_time, tags, info.run_name)
    tracker.model("search", directory / "model", digest="5a3e" * 16, alias="best")
    settled(directory.parent)
    [version] = client.search_model_versions(f"name = '{experiment}'")
    assert version.source is not None
    client.create_model_version(
        experiment,
        version.source,
        version.run_id,
        version.tags,
        model_id=Path(urlsplit(version.source).path).parts[-2],
        await_creation_for=0,
    )
    end(tracker, directory)
    assert held(port, experiment) == expected("one", experiment=experiment)
    assert str(client.get_model_version_by_alias(experiment, "best").version) == "1"
    # Even later, after the run.
    [run, *_] = client.search_runs([there.experiment_id])
    client.create_run(there.experiment_id, run.info.start_time, run.data.tags, run.info.run_name)
    assert held(port, experiment) != expected("one", experiment=experiment)
    assert sync(directory, port, experiment) == [
        f"nothing to send to http://127.0.0.1:{port}",
        "removed 1 duplicate runs and models that the server had created",
    ]
    assert held(port, experiment) == expected("one", experiment=experiment)


def test_an_unreachable_server_is_no_error_if_everything_was_sent(
    port: int, experiment: str, tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "one"
    tracker = make_tracker(directory, port, experiment=experiment)
    begin(tracker, directory)
    end(tracker, directory)
    file, elsewhere = directory / "tracking.json", f"http://127.0.0.1:{free_port()}"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "tracking_uri": elsewhere}))
    [line] = sync(directory, int(elsewhere.rpartition(":")[2]), experiment)
    assert line.startswith(f"nothing to send to {elsewhere}; could not look for duplicates")
    assert "no MLflow server answers" in line


def test_a_run_and_a_sync_at_the_same_time(port: int, experiment: str, tmp_path: Path) -> None:
    directory, syncs, done = tmp_path / "runs" / "one", list[str](), threading.Event()
    tracker = make_tracker(directory, port, experiment=experiment)

    def again() -> None:
        while not done.is_set():
            syncs.extend(sync(directory, port, experiment))

    begin(tracker, directory)
    thread = threading.Thread(target=again)
    thread.start()
    for step in range(HALF, STEPS):
        tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)
        time.sleep(0.02)
    done.set()
    thread.join()
    end(tracker, directory)
    sync(directory, port, experiment)
    assert syncs
    assert held(port, experiment) == expected("one", experiment=experiment)


@contextmanager
def forgetful(port: int) -> Iterator[tuple[int, list[int]]]:
    """A proxy that drops a third of the answers; yields its port and the number of drops."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    lost, chance = [0], random.Random(0)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            url = f"http://127.0.0.1:{port}{self.path}"
            headers = {"Content-Type": self.headers.get("Content-Type") or "text/plain"}
            request = Request(url, body or None, headers, method=self.command)
            try:
                with urlopen(request, timeout=20) as response:
                    status, text = response.status, response.read()
            except HTTPError as error:
                status, text = error.code, error.read()
            if chance.random() < 1 / 3:
                lost[0] += 1
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port, lost
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
