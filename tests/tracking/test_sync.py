"""Nothing is lost with a real ``mlflow server`` that is down, silent, killed or restarted."""

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from octnas.errors import TrackingError
from octnas.tracking import sender
from tests.tracking.halves import HALF, STEPS, begin, end, expected, make_tracker, sync
from tests.tracking.reading import settled
from tests.tracking.servers import free_port, held, kill, mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, migrated: Path) -> Path:
    """The server's folder."""
    found = tmp_path / "server"
    found.mkdir()
    (found / "mlflow.db").write_bytes(migrated.read_bytes())
    return found


def test_a_server_that_is_killed_during_a_run_loses_nothing(folder: Path, tmp_path: Path) -> None:
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    with mlflow_server(folder, port) as server:
        begin(tracker, directory)
        kill(server)
        started = time.perf_counter()
        end(tracker, directory)
        assert time.perf_counter() - started < 10
    [line] = lines
    assert f"they are kept: `octnas sync {directory}` sends them" in line
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


def test_a_server_that_is_always_down_does_not_slow_the_run(folder: Path, tmp_path: Path) -> None:
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


def test_a_server_that_comes_back_gets_what_it_missed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LONGEST_PAUSE", 2.0)
    port, directory, lines = free_port(), tmp_path / "runs" / "one", list[str]()
    tracker = make_tracker(directory, port, lines)
    begin(tracker, directory)
    with mlflow_server(folder, port):
        settled(directory.parent)
        end(tracker, directory)
        assert held(port) == expected("one")
    assert len(lines) == 1  # of the start


def test_a_server_that_has_lost_everything_gets_everything(
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
