"""A Ray cluster that runs already."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from octnas.cluster.join import ray_cluster
from octnas.cluster.settings import RaySettings
from octnas.errors import ClusterError, SettingError
from tests.cluster.test_start import ROOT
from tests.network import packets_sent


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
