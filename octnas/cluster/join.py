"""The Ray that a run uses: one of its own, or a cluster that runs already."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from octnas.cluster.settings import RaySettings
from octnas.cluster.start import QUIET, local_cluster, safe_path, sigterm_kept
from octnas.errors import ClusterError
from octnas.temporary import environment, level

_PATIENCE = 10  # seconds


@contextmanager
def ray_cluster(workers: int, settings: RaySettings) -> Iterator[None]:
    """Be connected with Ray within a ``with`` block.

    Args:
        workers: CPUs that a Ray of the run's own has.
        settings: which Ray, and what each worker has of it.

    Raises:
        ClusterError: it cannot be started or reached, or has fewer GPUs than one worker asks for.
    """
    own = not settings.address
    with local_cluster(workers, gpus=settings.gpus > 0) if own else _joined(settings.address):
        _check_gpus(settings.gpus)
        yield


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Be a driver of a running cluster, which goes on when the block ends."""
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray runs in this process already; call ray.shutdown() first")
    with (
        environment(QUIET),
        level(logging.getLogger("ray"), logging.ERROR),
        sigterm_kept(),
        safe_path(ray),
    ):
        try:
            _check_answer(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _skip_env_hook=True,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"ray.address: {address}: no Ray cluster can be joined there ({reason}); start "
                "one, or leave the address empty for a Ray on this machine"
            ) from None
        try:
            yield
        finally:
            ray.shutdown()


def _check_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise ValueError("neither auto nor HOST:PORT")
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


def _check_gpus(gpus: float) -> None:
    """Refuse what would wait for ever."""
    import ray

    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes()), default=0.0)
    if gpus > most:
        raise ClusterError(
            f"ray.gpus: found {gpus:g}, but no machine of the cluster has more than {most:g} GPUs"
        )
