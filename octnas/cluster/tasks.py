"""A function over many arguments in the worker processes of a running Ray."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from octnas.cluster.tune import one_line, shortened
from octnas.errors import ClusterError, OctnasError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    retries: int = 1,
    gpus: float = 0,
) -> Iterator[tuple[Item, Result]]:
    """Call a function once for each item.

    Needs a running Ray, as inside `octnas.cluster.start.ray_cluster`.

    Args:
        function: pickled into Ray's object store once.
        items: its arguments.
        workers: calls at a time.
        gpus: of each worker process.
        retries: how often an item is tried again after the death of its worker.

    Yields:
        Items with their results, as they are done.

    Raises:
        OctnasError: what the function raised, if it is one.
        ClusterError: any other failure, in one line.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray does not run; use octnas.cluster.start.ray_cluster")
    shared = ray.put(function)
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=retries)(call)
    left, waiting = iter(items), dict[Any, Item]()
    while True:
        for item in islice(left, workers - len(waiting)):
            waiting[task.remote(shared, item)] = item
        if not waiting:
            return
        (done,), _ = ray.wait(list(waiting))
        yield waiting.pop(done), _result(done)


def call(function: Callable[..., Result], *args: Any) -> Result:
    """Call any callable: Ray's tasks are functions."""
    return function(*args)


def _result(reference: "ray.ObjectRef[Result]") -> Result:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, OctnasError):
            raise error.cause from None
        raise ClusterError(f"a task failed: {shortened(one_line(error.cause))}") from error
    except WorkerCrashedError as error:
        # Ray's own words name log files that are gone with Ray.
        raise ClusterError(
            "a worker process died, again and again (killed, out of memory, or crashed); "
            "what is finished is kept, and the same command goes on with the rest"
        ) from error
    except RayError as error:
        raise ClusterError(f"a task failed: {shortened(one_line(error))}") from error
