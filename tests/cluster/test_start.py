"""The local Ray: nothing leaves the machine, and nothing is left behind.

A Ray cluster that runs already.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from octnas.cluster.settings import RaySettings
from octnas.cluster.start import LONGEST_TEMPORARY_DIRECTORY, local_cluster, ray_cluster
from octnas.errors import ClusterError, SettingError
from tests.network import packets_sent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short temporary directory that no other program writes to."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_import_does_not_import_ray() -> None:
    code = "import sys, octnas.cluster, octnas.cluster.start; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_refuses_no_workers() -> None:
    with pytest.raises(ClusterError, match="found 0, allowed: 1 or more"), local_cluster(0):
        pass


def test_local_cluster(monkeypatch: pytest.MonkeyPatch, own_tmp: Path) -> None:
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)

    @ray.remote
    def look() -> tuple[str, bool]:
        return os.environ["HOME"], is_token_auth_enabled()

    with local_cluster(2):
        assert ray.cluster_resources()["CPU"] == 2
        assert ray.get(look.remote()) == (environment["HOME"], True)
        assert os.environ["HOME"] == environment["HOME"]
        assert signal.getsignal(signal.SIGTERM) == handler
        assert len(list(own_tmp.iterdir())) == 1
        assert children()
        with pytest.raises(ClusterError, match="already"), local_cluster(1):
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert dict(os.environ) == environment
    assert not list(own_tmp.iterdir())
    assert not children()


@pytest.mark.slow
def test_ends_after_an_exception(own_tmp: Path) -> None:
    with pytest.raises(KeyboardInterrupt), local_cluster(1):
        raise KeyboardInterrupt
    assert not list(own_tmp.iterdir())
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize("safe", ["1", ""])
def test_workers_import_from_the_working_directory_only_where_python_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, safe: str
) -> None:
    import ray

    monkeypatch.setenv("PYTHONSAFEPATH", safe)
    monkeypatch.chdir(tmp_path)

    def path() -> list[str]:
        return sys.path

    with local_cluster(1):
        found: list[str] = ray.get(ray.remote(path).remote())
    assert (str(tmp_path) in found) == (not safe)
    assert "" not in found


@pytest.mark.slow
def test_starts_below_a_long_temporary_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * LONGEST_TEMPORARY_DIRECTORY)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with local_cluster(1):
        pass


@pytest.mark.parametrize("size", [LONGEST_TEMPORARY_DIRECTORY])
def test_socket_paths_are_short_enough(size: int) -> None:
    session = "session_2026-11-22_20-25-29_871000_4194304"  # the highest process id of Linux
    path = Path("x" * size, "octnas-12345678", session, "sockets", "plasma_store")
    assert len(str(path)) <= 107


def children() -> list[str]:
    """Command lines of the processes that this one has started and that still run.

    Without Python's own that outlives what it was started for.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            command = (status.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(parent) == os.getpid() and state != "Z" and "resource_tracker" not in command:
            found.append(command)
    return found


class TestNetwork:
    """Ray in a network whose only way out is counted."""

    @pytest.mark.slow
    def test_nothing_leaves_the_machine(self, own_tmp: Path, tmp_path: Path) -> None:
        sent, listening = isolated("octnas", own_tmp, tmp_path)
        assert sent == 0
        assert listening == ["127.0.0.1"]

    @pytest.mark.slow
    def test_would_be_noticed(self, own_tmp: Path, tmp_path: Path) -> None:
        """The same without the precautions: Ray asks the cloud's metadata addresses."""
        sent, listening = isolated("plain", own_tmp, tmp_path)
        assert sent > 0
        assert listening != ["127.0.0.1"]


def isolated(which: str, own_tmp: Path, folder: Path) -> tuple[int, list[str]]:
    """Packets sent and addresses listened on by `tests.cluster.isolated`."""
    result = folder / "listening.json"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(own_tmp),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    sent = packets_sent(("-m", "tests.cluster.isolated", which, str(result)), folder, environment)
    return sent, json.loads(result.read_text())


@pytest.mark.slow
def test_a_node_that_dies_loses_no_result(tmp_path: Path) -> None:
    """Of two nodes with a GPU each (so Ray is told), in a network that leads nowhere."""
    result = tmp_path / "result.json"
    (tmp_path / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as short:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(tmp_path),
            "TMPDIR": short,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        program = ("-m", "tests.cluster.two_nodes", str(result))
        assert packets_sent(program, tmp_path, environment) == 0
    found = json.loads(result.read_text())
    assert [one["mean"] for one in found["ranks"]] == [1.5] * 4
    assert sorted(Counter(one["node"] for one in found["ranks"]).values()) == [2, 2]
    # None is lost, none has failed, and they are those of a search without any cluster.
    assert found["states"] == ["COMPLETE"] * 16
    assert len(found["found"]) == 16
    rows = [
        [(one["trial"], one["id"], one["loss"]) for one in found[which]]
        for which in ("found", "alone")
    ]
    assert rows[0] == rows[1]
    assert {one["rank_gpu"] for one in found["found"]} == {0.5}
    nodes = Counter(one["rank_node"] for one in found["found"])
    assert len(nodes) == 2
    assert min(nodes.values()) >= 1
    # The cluster went on when the search had left it.
    assert found["cpus"] >= 2


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1", "nonsense"])
def test_where_no_cluster_runs(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There `auto` looks.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(ClusterError, match=f"^ray.address: {address}: no Ray cluster") as caught,
        ray_cluster(1, RaySettings(address=address)),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_more_gpus_than_there_are() -> None:
    with (
        pytest.raises(ClusterError, match=r"^ray\.gpus: found 99, but no machine of the cluster"),
        ray_cluster(1, RaySettings(gpus=99)),
    ):
        pass


@pytest.mark.parametrize("gpus", [-1, 1.5])
def test_shares_of_gpus(gpus: float) -> None:
    with pytest.raises(SettingError, match=r"gpus: found .*, allowed: 0 to 1, or a whole number"):
        RaySettings(gpus=gpus)
