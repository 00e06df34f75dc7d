"""Read back what was recorded."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from octnas.errors import TrackingError
from octnas.tracking.tracker import Tracker


def settled(runs: Path) -> None:
    """Wait until all records are sent."""
    for _ in range(600):
        if all(_sent(outbox) for outbox in runs.glob("*/mlflow/outbox.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError("not everything was sent")


def _sent(outbox: Path) -> bool:
    progress = outbox.parents[1] / "tracking.json"
    sent = json.loads(progress.read_text()).get("sent") if progress.exists() else 0
    return bool(sent == outbox.stat().st_size)


def client(runs: Path) -> Any:
    from mlflow import MlflowClient

    settled(runs)
    return MlflowClient(f"sqlite:///{runs}/mlflow.db")


def run_id(runs: Path, key: str, run: str = "digits") -> str:
    settled(runs)
    document = json.loads((runs / run / "tracking.json").read_text())
    return str(document["runs"][key])


def found(runs: Path, key: str, run: str = "digits") -> Any:
    return client(runs).get_run(run_id(runs, key, run))


def history(runs: Path, key: str, metric: str) -> list[tuple[int, float]]:
    points = client(runs).get_metric_history(run_id(runs, key), metric)
    return [(point.step, point.value) for point in points]


def all_runs(runs: Path) -> list[Any]:
    experiment = client(runs).get_experiment_by_name("digits")
    return list(client(runs).search_runs([experiment.experiment_id]))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def assert_nowhere(secret: str, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def failure(tracker: Tracker) -> str:
    """The error of `Tracker.start`, which is one line."""
    with pytest.raises(TrackingError) as caught:
        tracker.start("a", "A")
    # A traceback would show what the message hides.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    text = str(caught.value)
    assert "\n" not in text
    return text
