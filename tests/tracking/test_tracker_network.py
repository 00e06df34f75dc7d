"""Nothing is sent over the network without a server in the settings."""

import shutil
from pathlib import Path

import pytest

from tests.network import packets_sent

TRACKED = """
import threading, time
from pathlib import Path
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
runs = Path("runs")
tracker = Tracker(TrackingSettings(), experiment="e", directory=runs / "one")
tracker.start("a", "A", params={"x": 1})
tracker.metrics("a", {"x": 1.0}, 0)
tracker.artifact("a", Path("resolv.conf"))
tracker.close()
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
time.sleep(2)  # the telemetry of MLflow asks for its configuration in a thread
"""
PLAIN = """
import time
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
client.create_run(client.create_experiment("e"))
time.sleep(2)
"""
PACKET = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("203.0.113.9", 9))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment: in tests (PYTEST_CURRENT_TEST, CI) MLflow's telemetry is off anyway."""
    root = Path(__file__).parents[2]
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(root),
    }


def test_a_packet_is_counted(tmp_path: Path, environment: dict[str, str]) -> None:
    assert packets_sent(("-c", PACKET), tmp_path, environment) == 1
    assert packets_sent(("-c", ""), tmp_path, environment) == 0


@pytest.mark.slow
def test_recording_runs_sends_nothing(
    tmp_path: Path, environment: dict[str, str], migrated: Path
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(migrated, tmp_path / "runs" / "mlflow.db")
    assert packets_sent(("-c", TRACKED), tmp_path, environment) == 0
    assert any((tmp_path / "runs" / "mlartifacts").rglob("resolv.conf"))
    assert not (tmp_path / ".config").exists()  # MLflow's telemetry keeps an id there


@pytest.mark.slow
def test_mlflow_without_octnas_phones_home(tmp_path: Path, environment: dict[str, str]) -> None:
    """If this fails, the test above no longer proves anything."""
    assert packets_sent(("-c", PLAIN), tmp_path, environment) > 0
