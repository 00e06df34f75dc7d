"""A cluster of two nodes, of which one dies in the middle of a search; see `test_join`.

    python -m tests.cluster.two_nodes RESULT

Writes to the file ``RESULT`` what the driver was told, on which node and which share of a GPU each
candidate was evaluated, and the CPUs of the cluster after the search has left it.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octnas.cluster.evaluation import Evaluate
from octnas.cluster.join import ray_cluster
from octnas.cluster.settings import RaySettings
from octnas.cluster.start import LOOPBACK
from octnas.cluster.tune import run_with_tune
from tests.cluster.batches import Batches

DIES_AFTER = 6


class Deadly(Batches):
    """Ends a node when some candidates are told, and others are being evaluated on it."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__(count=16, batch=8)
        self.end = end

    def tell(self, number: int, outcome: Mapping[str, float] | str) -> None:
        super().tell(number, outcome)
        if len(self.told) == DIES_AFTER:
            self.end()


def make_evaluate() -> Evaluate:
    import ray

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> Mapping[str, float]:
        time.sleep(0.5)
        context = ray.get_runtime_context()
        ports = {node["NodeID"]: node["NodeManagerPort"] for node in ray.nodes()}
        share = context.get_assigned_resources().get("GPU", 0.0)
        return {"loss": alphas["stem"], "node": ports[context.get_node_id()], "gpu": share}

    return evaluate


@contextmanager
def two_nodes(folder: Path) -> Iterator[Callable[[], None]]:
    """Give what ends the second node."""
    # There ``auto`` looks for a cluster.
    os.environ["RAY_TMPDIR"] = str(folder)
    (folder / "ray").mkdir()
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"num_cpus": 2, "num_gpus": 1, "node_ip_address": LOOPBACK}
    head = {**common, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(**common)
        yield lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


def main(result: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with two_nodes(Path(folder)) as end, tempfile.TemporaryDirectory() as work:
            driver = Deadly(end)
            with ray_cluster(4, RaySettings(address="auto", gpus=0.5)):
                run_with_tune(
                    driver, make_evaluate, workers=4, directory=Path(work), retries=1, gpus=0.5
                )
            with ray_cluster(1, RaySettings(address="auto")):
                import ray

                left = ray.cluster_resources()["CPU"]
        result.write_text(json.dumps({"told": driver.told, "cpus": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
