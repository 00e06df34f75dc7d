"""Processes of a running Ray that train one network together."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from octnas.cluster.evaluation import one_line
from octnas.cluster.tasks import call
from octnas.errors import ClusterError, OctnasError

Job = TypeVar("Job")


def run_ranks(
    function: Callable[[Job, int, int, str], None],
    job: Job,
    *,
    workers: int,
    restarts: int,
    folder: Path,
    gpus: float = 0,
) -> None:
    """Call a function in several workers at once, and wait for all.

    If one fails or dies, the others are ended and all are started again.

    Args:
        function: called with the job, the rank, the number of ranks, and the path of a file in
            which they find each other.
        job: picklable.
        workers: how many.
        restarts: how often they are started again.
        folder: that all nodes share, for the place where they meet.
        gpus: of each worker.

    Raises:
        OctnasError: what the function raised, if it is one; it is not tried again then.
        ClusterError: they failed more often than that; with the reason of the first.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray does not run; use octnas.cluster.join.ray_cluster")
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(call)
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    for _ in range(restarts + 1):
        # Another file for every attempt: what those that died have left in it misleads the next.
        meeting = folder / f"meeting-{uuid.uuid4().hex}"
        ranks = [task.remote(function, job, rank, workers, str(meeting)) for rank in range(workers)]
        try:
            reason = _wait(ranks)
        finally:
            meeting.unlink(missing_ok=True)
        if not reason:
            return
    raise ClusterError(
        f"a worker of the training failed ({reason}); the same command goes on from the last "
        "checkpoint"
    )


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
            # Those that wait for one that died would wait for ever.
            ray.cancel(rank, force=True)
    return ""
