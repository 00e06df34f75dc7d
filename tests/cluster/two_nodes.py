"""A cluster of two nodes: ranks of one training on both; one dies in a search. See `test_join`.

    python -m tests.cluster.two_nodes RESULT

Writes to the file ``RESULT`` the states of the study's trials, the candidates, on which node and
which share of a GPU each was evaluated, the candidates of the same search in this process, and the
CPUs of the cluster after the search has left it; and before that, the mean of the ranks' numbers
and on which nodes they were.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage

from octnas.cluster.ranks import run_ranks
from octnas.cluster.settings import RaySettings
from octnas.cluster.start import LOOPBACK, ray_cluster
from octnas.cluster.tune import Evaluate, run_with_tune
from octnas.search.settings import SearchSettings
from octnas.search.storage import opened
from octnas.search.study import Driver, run_local
from octnas.training.distributed import joined
from tests.search.small import loss_of, small_driver, small_space

DIES_AFTER = 6


class Deadly(Driver):
    """Ends a node when both have answered, and others are being evaluated on it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.end: Callable[[], None] | None = None
        self.nodes: list[float] = []

    def tell(self, number: int, outcome: Mapping[str, float] | str) -> None:
        super().tell(number, outcome)
        if self.end is None or isinstance(outcome, str):
            return
        self.nodes.append(outcome["node"])
        if len(self.nodes) >= DIES_AFTER and len(set(self.nodes)) == 2:
            end, self.end = self.end, None
            end()


def make_driver(folder: Path, storage: BaseStorage) -> Deadly:
    """Sixteen candidates of a small space."""
    settings = SearchSettings(trials=16, batch_size=8, spread=4)
    return small_driver(small_space(), settings, storage, kind=Deadly)


def this_node() -> int:
    """A number of the node that a worker is on."""
    import ray

    ports = {node["NodeID"]: int(node["NodeManagerPort"]) for node in ray.nodes()}
    return ports[ray.get_runtime_context().get_node_id()]


def make_evaluate(begun: Path) -> Evaluate:
    """Once both nodes have begun, which note so in a folder."""
    import ray

    (begun / str(this_node())).touch()
    while len(list(begun.iterdir())) < 2:
        time.sleep(0.05)

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> Mapping[str, float]:
        time.sleep(0.5)
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        return {**loss_of(alphas), "node": this_node(), "gpu": share}

    return evaluate


def meet(folder: Path, rank: int, ranks: int, meeting: str) -> None:
    """Write the mean of the ranks' numbers, and where this one is."""
    with joined("cpu", rank=rank, processes=ranks, rendezvous=meeting) as together:
        mean = torch.tensor([float(rank)])
        together.average(mean)
        found = {"mean": mean.item(), "node": this_node()}
        (folder / f"{rank}.json").write_text(json.dumps(found))


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
            met = Path(work) / "met"
            met.mkdir()
            with ray_cluster(4, RaySettings(address="auto")):
                run_ranks(meet, met, workers=4, restarts=0, folder=Path(work) / "meeting")
            ranks = [json.loads(path.read_text()) for path in sorted(met.iterdir())]
            with (
                opened("", Path(work) / "study.journal") as storage,
                ray_cluster(4, RaySettings(address="auto", gpus=0.5)),
            ):
                driver = make_driver(Path(work), storage)
                driver.end = end
                begun = Path(work) / "begun"
                begun.mkdir()
                make = partial(make_evaluate, begun)
                run_with_tune(driver, make, workers=4, directory=Path(work), retries=0, gpus=0.5)
                states = [trial.state.name for trial in storage.get_all_trials(0)]
            here = Path(work) / "here"
            here.mkdir()
            with opened("", here / "study.journal") as storage:
                alone = make_driver(here, storage)
                run_local(alone, loss_of)
            with ray_cluster(1, RaySettings(address="auto")):
                import ray

                left = ray.cluster_resources()["CPU"]
        document = {"ranks": ranks, "states": states, "cpus": left}
        document |= {"found": _rows(driver), "alone": _rows(alone)}
        result.write_text(json.dumps(document))


def _rows(driver: Driver) -> list[dict[str, Any]]:
    return [
        {"trial": one.trial, "id": one.id, "loss": one.loss, **one.metrics}
        for one in driver.candidates()
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
