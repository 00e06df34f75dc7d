"""The local Ray: nothing leaves the machine, and nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from octnas.cluster.start import LONGEST_TEMPORARY_DIRECTORY, local_cluster
from octnas.errors import ClusterError
from tests.cluster.isolated import NOT_POSSIBLE

ROOT = Path(__file__).parents[2]


def test_import_does_not_import_ray() -> None:
    code = "import sys, octnas.cluster, octnas.cluster.start; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_refuses_no_workers() -> None:
    with pytest.raises(ClusterError, match="found 0, allowed: 1 or more"), local_cluster(0):
        pass


def test_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment, handler, files = dict(os.environ), signal.getsignal(signal.SIGTERM), our_files()

    @ray.remote
    def look() -> tuple[str, bool]:
        return os.environ["HOME"], is_token_auth_enabled()

    with local_cluster(2):
        assert ray.cluster_resources()["CPU"] == 2
        assert ray.get(look.remote()) == (environment["HOME"], True)
        assert os.environ["HOME"] == environment["HOME"]
        assert signal.getsignal(signal.SIGTERM) == handler
        assert len(our_files() - files) == 1
        assert children()
        with pytest.raises(ClusterError, match="already"), local_cluster(1):
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert dict(os.environ) == environment
    assert our_files() == files
    assert not children()


@pytest.mark.slow
def test_ends_after_an_exception() -> None:
    files = our_files()
    with pytest.raises(KeyboardInterrupt), local_cluster(1):
        raise KeyboardInterrupt
    assert our_files() == files
    assert not children()


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


def our_files() -> set[Path]:
    return set(Path("/tmp").glob("octnas-*")) | set(Path(tempfile.gettempdir()).glob("octnas-*"))


def children() -> list[str]:
    """Command lines of the processes that this one has started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            command = (status.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(parent) == os.getpid() and state != "Z":
            found.append(command)
    return found


class TestNetwork:
    """Ray in a network namespace whose only way out is counted; see `tests.cluster.isolated`."""

    def test_nothing_leaves_the_machine(self) -> None:
        found = isolated("octnas")
        assert found["control"] == 1
        assert found["sent"] == 0
        assert found["listening"] == ["127.0.0.1"]

    @pytest.mark.slow
    def test_would_be_noticed(self) -> None:
        """The same without the precautions: Ray asks the cloud's metadata addresses."""
        found = isolated("plain")
        assert found["sent"] > 0
        assert found["listening"] != ["127.0.0.1"]


def isolated(which: str) -> dict[str, Any]:
    """What `tests.cluster.isolated` prints, or a skipped test where there are no namespaces."""
    unshare = unshare_command()
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [*unshare, sys.executable, "-m", "tests.cluster.isolated", which],
            env={**os.environ, "HOME": home, "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
    if done.returncode == NOT_POSSIBLE:
        pytest.skip(f"no virtual network interface can be made here: {done.stdout}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def unshare_command() -> list[str]:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    pytest.skip("network namespaces are not permitted here")
