"""Processes of a running Ray that train one network together."""

import fcntl
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from octnas.cluster.start import LOOPBACK
from octnas.cluster.tune import one_line
from octnas.errors import ClusterError, OctnasError

# Of Linux: the IPv4 address of an interface; its name, then 24 bytes for the answer.
_SIOCGIFADDR = 0x8915
_NAME, _ADDRESS = 15, slice(20, 24)


def interface_of(address: str) -> str:
    """The name of the interface that has an IPv4 address; empty where none is found."""
    if sys.platform != "linux":
        return "lo0" if address == LOOPBACK else ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:_NAME])
            try:
                answer = fcntl.ioctl(one.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no such address
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return ""


Job = TypeVar("Job")

# Seconds that a cluster has to make room for all ranks, or to grow.
_ROOM = 120.0


def run_ranks(
    function: Callable[[Job, int, int, str], None],
    job: Job,
    *,
    workers: int,
    restarts: int,
    folder: Path,
    gpus: float = 0,
) -> None:
    """Call a function in several workers at once, on any nodes of the cluster, and wait for all.

    Resources are reserved for all of them before the first begins. If one fails or dies, the others
    are ended and all are started again.

    Args:
        function: called with the job, the rank, the number of ranks, and the rendezvous file.
        job: picklable.
        workers: how many.
        restarts: how often they are started again.
        folder: shared by all nodes, for rendezvous files.
        gpus: of each worker.

    Raises:
        OctnasError: raised by the function, which is not tried again then.
        ClusterError: they failed more often than that, or the cluster has no room for all of them.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray does not run; use octnas.cluster.start.ray_cluster")
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    with _room(workers, gpus) as room:
        task: Any = ray.remote(
            num_cpus=1,
            num_gpus=gpus,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(room),
        )(_on_its_node)
        for _ in range(restarts + 1):
            # On every attempt: after a node died, its bundles are placed on other nodes.
            _wait_for(room, workers, gpus)
            # A new file for every attempt: entries of dead processes would mislead others.
            rendezvous = folder / f"rendezvous-{uuid.uuid4().hex}"
            ranks = [
                task.remote(function, job, rank, workers, str(rendezvous))
                for rank in range(workers)
            ]
            try:
                reason = _wait(ranks)
            finally:
                rendezvous.unlink(missing_ok=True)
            if not reason:
                return
    raise ClusterError(
        f"a worker of the training failed ({reason}); the same command resumes from the last "
        "checkpoint"
    )


@contextmanager
def _room(workers: int, gpus: float) -> Iterator[PlacementGroup]:
    """Resources reserved for all ranks together, on few nodes, and released."""
    bundle = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    group = placement_group([bundle] * workers, strategy="PACK")
    try:
        yield group
    finally:
        # If Ray has ended, so has the reservation.
        with suppress(RayError, OSError):
            remove_placement_group(group)


def _wait_for(room: PlacementGroup, workers: int, gpus: float) -> None:
    """Wait until there is room for all, since ranks that started would wait for the others."""
    end = time.monotonic() + _ROOM
    # For short periods, between which signals are handled.
    while not room.wait(timeout_seconds=1):
        if time.monotonic() > end:
            there = ray.cluster_resources()
            raise ClusterError(
                f"supernet.processes: found {workers}, each with a CPU and {gpus:g} GPUs, but the "
                f"cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, and "
                f"had no room for all of them within {_ROOM:.0f} s"
            )


def _on_its_node(
    function: Callable[[Job, int, int, str], None], job: Job, rank: int, workers: int, file: str
) -> None:
    """Call the function with Gloo on the interface by which other nodes know this one."""
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        address = ray.util.get_node_ip_address()
        if not (name := interface_of(address)):
            raise ClusterError(
                f"{address}: no network interface of this node has the address that other nodes "
                "use for it; set GLOO_SOCKET_IFNAME to the name of one where Ray is started"
            )
        os.environ["GLOO_SOCKET_IFNAME"] = name
        if address == LOOPBACK:
            # NCCL would take any other.
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    function(job, rank, workers, file)


def _wait(ranks: list[Any]) -> str:
    """The reason why one of them failed; empty if none did."""
    waiting = list(ranks)
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, OctnasError):
            raise cause from None
        return one_line(cause)
    finally:
        for rank in waiting:
            # Ranks that wait for a dead one would wait forever.
            ray.cancel(rank, force=True)
    return ""
