"""Run a real ``mlflow server`` in its own process, and read what it contains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server process, wait until it answers, and terminate it at the end."""
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(480):
            assert process.poll() is None, (folder / "server.log").read_text()
            if health(port):
                break
            time.sleep(0.25)
        yield process
    finally:
        process.terminate()  # mlflow passes it on to its workers
        process.wait(timeout=30)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
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
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as response:
        return bytes(response.read())


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server with an SQLite file in a folder, which a later server can continue."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with running(command, port, folder) as process:
        yield process


@dataclass(frozen=True)
class Held:
    """What a server contains about an experiment.

    Attributes:
        names: of its runs, sorted.
        status: by name of the run.
        params: number of each run's parameters.
        metrics: steps of each metric in order, by run and name.
        artifacts: paths of each run, sorted.
        parents: name of each nested run's parent.
        versions: of the registered model of the experiment's name, sorted.
    """

    names: list[str]
    status: dict[str, str]
    params: dict[str, int]
    metrics: dict[str, dict[str, list[int]]]
    artifacts: dict[str, list[str]]
    parents: dict[str, str]
    versions: dict[str, list[str]]


def held(port: int, experiment: str = "digits") -> Held:
    """Read a server with MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return Held([], {}, {}, {}, {}, {}, {})
    runs = list(client.search_runs([found.experiment_id], max_results=1000))
    by_id = {run.info.run_id: str(run.info.run_name) for run in runs}
    versions: dict[str, list[str]] = {}
    for version in client.search_model_versions(f"name = '{experiment}'"):
        versions.setdefault(version.name, []).append(version.version)
    return Held(
        names=sorted(by_id.values()),
        status={by_id[run.info.run_id]: run.info.status for run in runs},
        params={by_id[run.info.run_id]: len(run.data.params) for run in runs},
        metrics={
            by_id[run.info.run_id]: {
                name: [point.step for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            for run in runs
        },
        artifacts={by_id[run.info.run_id]: sorted(_files(client, run)) for run in runs},
        parents={
            by_id[run.info.run_id]: by_id[run.data.tags["mlflow.parentRunId"]]
            for run in runs
            if "mlflow.parentRunId" in run.data.tags
        },
        versions={name: sorted(found) for name, found in versions.items()},
    )


def _files(client: Any, run: Any, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run.info.run_id, folder):
        if entry.is_dir:
            yield from _files(client, run, entry.path)
        else:
            yield entry.path
