"""Against a real ``mlflow server`` that is down, silent, killed or forgetful: nothing is lost."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.sync import sync_runs
from octnas.tracking.tracker import Tracker
from tests.tracking.reading import settled
from tests.tracking.servers import Held, free_port, health, held, kill, mlflow_server

pytestmark = pytest.mark.slow

STEPS = 40
HALF = STEPS // 2


@pytest.fixture
def folder(tmp_path: Path, migrated: Path) -> Path:
    """Of a server."""
    found = tmp_path / "server"
    found.mkdir()
    (found / "mlflow.db").write_bytes(migrated.read_bytes())
    return found


def make_tracker(directory: Path, port: int, lines: list[str] | None = None) -> Tracker:
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}")
    say = print if lines is None else lines.append
    return Tracker(settings, experiment="digits", directory=directory, say=say)


def sync(directory: Path, port: int) -> list[str]:
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}")
    return list(sync_runs(settings, "digits", directory))


def begin(tracker: Tracker, directory: Path, name: str = "one") -> None:
    """The first half of a run."""
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "weights.bin").write_bytes(bytes(range(256)))
    tracker.start("experiment", name, params={"seed": 1, "space": {"grid": [0, 0.5]}})
    tracker.start("search", f"{name} search", parent="experiment")
    for step in range(HALF):
        tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)


def end(tracker: Tracker, directory: Path) -> None:
    """The second half."""
    for step in range(HALF - 2, STEPS):
        # Work that goes on repeats the last steps.
        tracker.metrics_once("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)
    tracker.artifact("search", directory / "model", "exports")
    tracker.model("search", directory / "model", digest="same", alias="best", tags={"a": "b"})
    tracker.finish("search")
    tracker.close()


def expected(*names: str) -> Held:
    """What a server holds after both halves of some runs."""
    searches = [f"{name} search" for name in names]
    everyone = sorted([*names, *searches])
    steps = list(range(STEPS))
    return Held(
        names=everyone,
        status=dict.fromkeys(everyone, "FINISHED"),
        params={name: 2 if name in names else 0 for name in everyone},
        metrics={
            name: {} if name in names else {"loss": steps, "macs": steps} for name in everyone
        },
        artifacts={
            name: [] if name in names else ["exports/model/weights.bin"] for name in everyone
        },
        parents=dict(zip(searches, names, strict=True)),
        versions={"digits": [str(1 + index) for index in range(len(names))]},
    )


def test_four_processes_log_at_once(folder: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.tracking.test_sync import begin, end, make_tracker
directory, port = Path(sys.argv[1]), int(sys.argv[2])
lines = []
tracker = make_tracker(directory, port, lines)
begin(tracker, directory, directory.name)
end(tracker, directory)
print(lines)
"""
    port, names = free_port(), ["a", "b", "c", "d"]
    with mlflow_server(folder, port):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / name), str(port)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        said = [process.communicate(timeout=200)[0] for process in processes]
        assert said == ["[]\n"] * 4
        assert held(port) == expected(*names)


def test_a_server_that_is_killed_in_mid_run_loses_nothing(folder: Path, tmp_path: Path) -> None:
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    with mlflow_server(folder, port) as server:
        begin(tracker, directory)
        kill(server)
        started = time.perf_counter()
        end(tracker, directory)
        assert time.perf_counter() - started < 10
    [line] = lines
    assert f"they are kept, and `octnas sync {directory}` sends them" in line
    assert "records are not sent yet (" in line
    with pytest.raises(TrackingError, match=r"no MLflow server answers .*; sent 0 records, \d+ ar"):
        sync(directory, port)
    with mlflow_server(folder, port):
        [line] = sync(directory, port)
        assert line.startswith(f"sent to http://127.0.0.1:{port}: ")
        assert "1 artifacts" in line
        assert held(port) == expected("one")
        assert sync(directory, port) == [f"nothing to send to http://127.0.0.1:{port}"]
        assert held(port) == expected("one")


def test_a_server_that_is_down_all_the_time_slows_nothing(folder: Path, tmp_path: Path) -> None:
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    import mlflow  # noqa: F401  takes seconds, with a server too

    started = time.perf_counter()
    begin(tracker, directory)
    end(tracker, directory)
    assert time.perf_counter() - started < 5
    assert [line.partition(" ")[0] for line in lines] == ["MLflow:", "MLflow:"]
    with mlflow_server(folder, port):
        sync(directory, port)
        assert held(port) == expected("one")


def test_a_server_that_never_answers(folder: Path, tmp_path: Path) -> None:
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    with closing(socket.socket()) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", port))
        silent.listen(100)
        started = time.perf_counter()
        begin(tracker, directory)  # the first record waits for a first answer
        assert time.perf_counter() - started < 15
        started = time.perf_counter()
        for step in range(HALF, STEPS):
            tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)
        assert time.perf_counter() - started < 1
        started = time.perf_counter()
        end(tracker, directory)
        assert time.perf_counter() - started < 15
        with pytest.raises(TrackingError, match="timed out"):
            sync(directory, port)
    assert any("octnas sync" in line for line in lines)
    with mlflow_server(folder, port):
        sync(directory, port)
        assert held(port) == expected("one")


def test_a_server_that_comes_back_is_told_what_it_missed(folder: Path, tmp_path: Path) -> None:
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    begin(tracker, directory)
    with mlflow_server(folder, port):
        settled(directory.parent)
        end(tracker, directory)
        assert held(port) == expected("one")
    assert len(lines) == 1  # of the start


def test_a_process_that_is_killed_in_mid_run(folder: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.tracking.test_sync import begin, make_tracker
directory, port = Path(sys.argv[1]), int(sys.argv[2])
tracker = make_tracker(directory, port)
begin(tracker, directory)
print("begun", flush=True)
for step in range(10**9):
    tracker.metrics_once("search", {"more": float(step)}, step)
"""
    port, directory = free_port(), tmp_path / "runs" / "one"
    arguments = [sys.executable, "-c", code, str(directory), str(port)]
    with mlflow_server(folder, port):
        for number in range(3):
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(0.3 + 0.4 * number)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        sync(directory, port)
        # Only whole lines; the repetitions of the first half are at other times, and so recorded.
        rows = [
            entry
            for line in (directory / "mlflow" / "outbox.jsonl").read_text().splitlines()
            if (entry := json.loads(line))["kind"] == "metrics" and entry["once"]
        ]
        most = max(row[0] for entry in rows for row in entry["rows"])
        assert most > 3
        found = held(port)
        assert found.names == ["one", "one search"]
        assert found.metrics["one search"]["more"] == list(range(most + 1))
        assert sorted(found.metrics["one search"]["loss"]) == sorted(3 * list(range(HALF)))


@pytest.mark.parametrize("forgotten", ["position", "everything"])
def test_what_is_sent_again_is_there_once(folder: Path, tmp_path: Path, forgotten: str) -> None:
    """A process may be killed after it has sent something and before it has noted it."""
    port, directory = free_port(), tmp_path / "runs" / "one"
    with mlflow_server(folder, port):
        tracker = make_tracker(directory, port)
        begin(tracker, directory)
        end(tracker, directory)
        assert held(port) == expected("one")
        file = directory / "tracking.json"
        document = json.loads(file.read_text())
        if forgotten == "position":
            file.write_text(json.dumps({**document, "sent": 0}))
        else:
            file.unlink()
        [line] = sync(directory, port)
        assert "2 runs" in line
        assert held(port) == expected("one")
        assert json.loads(file.read_text()) == document


def test_answers_that_are_lost(folder: Path, tmp_path: Path) -> None:
    """The server has done what it was asked, and the connection breaks before it can say so."""
    port, directory = free_port(), tmp_path / "runs" / "one"
    with mlflow_server(folder, port), forgetful(port) as (entrance, lost):
        tracker = make_tracker(directory, entrance)
        begin(tracker, directory)
        end(tracker, directory)
        for _ in range(60):
            try:
                sync(directory, entrance)
            except TrackingError:
                continue
            break
        assert lost[0] > 5
        assert held(port) == expected("one")


def test_a_run_that_a_slow_server_has_created_late_is_removed(folder: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    port, directory = free_port(), tmp_path / "runs" / "one"
    with mlflow_server(folder, port):
        tracker = make_tracker(directory, port)
        begin(tracker, directory)
        settled(directory.parent)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        for run in client.search_runs([experiment.experiment_id]):
            client.create_run(
                experiment.experiment_id,
                start_time=run.info.start_time,
                run_name=run.info.run_name,
                tags=run.data.tags,
            )
        end(tracker, directory)
        assert held(port) == expected("one")


def test_a_server_that_has_lost_everything_is_told_everything(
    folder: Path, tmp_path: Path, migrated: Path
) -> None:
    port, directory = free_port(), tmp_path / "runs" / "one"
    with mlflow_server(folder, port):
        tracker = make_tracker(directory, port)
        begin(tracker, directory)
        tracker.close()
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    with mlflow_server(folder, port):
        tracker.start("experiment", "one")
        tracker.start("search", "one search", parent="experiment")
        end(tracker, directory)
        assert held(port) == expected("one")


def test_a_run_and_a_sync_do_not_get_in_each_others_way(folder: Path, tmp_path: Path) -> None:
    port, directory = free_port(), tmp_path / "runs" / "one"
    with mlflow_server(folder, port):
        tracker = make_tracker(directory, port)
        syncs: list[str] = []
        going = threading.Event()

        def again() -> None:
            while not going.is_set():
                syncs.extend(sync(directory, port))

        begin(tracker, directory)
        thread = threading.Thread(target=again)
        thread.start()
        for step in range(HALF, STEPS):
            tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)
            time.sleep(0.02)
        going.set()
        thread.join()
        end(tracker, directory)
        sync(directory, port)
        assert syncs
        assert held(port) == expected("one")


@contextmanager
def forgetful(port: int) -> Iterator[tuple[int, list[int]]]:
    """A proxy that breaks off after every third request or so was carried out; and how often."""
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
        assert health(port)
