"""A Ray of our own on this machine: it sends nothing to other machines and leaves nothing behind.

What Ray 2.60 does without these precautions, and what stops it:

- Its dashboard process asks the cloud metadata addresses (169.254.169.254 and
  metadata.google.internal) at every start, even with ``include_dashboard=False`` and usage
  statistics off, unless ``~/ray_bootstrap_config.yaml`` exists. So Ray's own processes get a
  private home with such a file, and the workers get the user's home back.
- All its servers listen on all interfaces, and ``_node_ip_address="127.0.0.1"`` is replaced by the
  address of the machine, unless Ray's switch for clusters is off (it is named after Windows and
  macOS, where that is the default).
- Under ``uv run`` it packs the working directory and starts every worker with ``uv run`` too,
  which may look for packages, unless its hook is off.
- On machines with ``/dev/accel*`` or ``/dev/vfio/*`` it asks the metadata address about TPUs,
  unless their number is given.

A run can use a cluster that is already running instead.
"""

import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from octnas.cluster.settings import RaySettings
from octnas.errors import ClusterError
from octnas.runtime.temporary import attribute, environment, handler_kept, level

LOOPBACK = "127.0.0.1"

# The factory of the evaluations goes through the object store: weights and images, once. Ray's
# default would be 30 % of the machine's memory; what does not fit is spilled to disk. The store
# takes memory as it fills, not at once.
OBJECT_STORE_BYTES = 512 * 2**20

# The path of a Unix socket has at most 107 bytes: 16 are ours, and Ray puts up to 64 below them.
LONGEST_TEMPORARY_DIRECTORY = 24

QUIET: Mapping[str, str | None] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}
"""Turns Ray's usage statistics off."""

_RAY_ENVIRONMENT: Mapping[str, str | None] = {
    **QUIET,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": None,  # Ray's default for a local start is "token"; it sets this variable
    "RAY_ADDRESS": None,
    "RAY_REDIS_ADDRESS": None,
    "RAY_worker_niceness": "0",  # default 15: they would starve next to any other busy process
    # Workers request no GPU, so that any number of them can share the machine's; without this Ray
    # would hide all GPUs from them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers with an environment of their own cannot be started ahead.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@contextmanager
def local_cluster(workers: int, *, gpus: bool = False) -> Iterator[None]:
    """Run Ray on this machine within a ``with`` block.

    Its processes listen on the loopback interface only and ask for a token. They end with the
    block, also after an exception or Ctrl-C, and their files are removed.

    Args:
        workers: number of Ray's CPUs, and so of evaluations at a time.
        gpus: whether Ray also assigns the machine's GPUs, and hides them from other workers.

    Raises:
        ClusterError: ``workers`` is below 1, Ray is in use in this process already, or it does
            not start.
    """
    if workers < 1:
        raise ClusterError(f"workers: found {workers}, allowed: 1 or more")
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray runs in this process already; call ray.shutdown() first")
    with (
        tempfile.TemporaryDirectory(
            prefix="octnas-", dir=_short_directory(), ignore_cleanup_errors=True
        ) as directory,
        environment(_RAY_ENVIRONMENT),
        _token(ray),
        environment({"PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT")}),  # Ray sets it
        level(logging.getLogger("ray"), logging.ERROR),
        # Ray prints the deaths of workers, whatever its settings; failures are reported anyway.
        attribute(ray._private.worker, "_worker_logs_enabled", value=False),
    ):
        try:
            _start(ray, workers, Path(directory), gpus=gpus)
            yield
        finally:
            # Waiting lets the directory be removed after the last log line.
            ray.shutdown(wait_for_processes=True)


def _start(ray: ModuleType, workers: int, directory: Path, *, gpus: bool) -> None:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails where there is none
    private = directory / "home"
    private.mkdir()
    (private / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    with (
        environment({"HOME": str(private)}),
        # Ray reads the variables for these when it is imported, which may be long ago.
        attribute(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", value=False),
        attribute(ray._private.ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", value=False),
        handler_kept(signal.SIGTERM),  # `ray.init` replaces it
        safe_path(ray),
    ):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=None if gpus else 0,
                resources={"TPU": 0},
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"HOME": home}},
                _node_ip_address=LOOPBACK,
                _temp_dir=str(directory),
                _skip_env_hook=True,
            )
        except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())
            raise ClusterError(f"Ray does not start: {reason}") from error
    address = ray.nodes()[0]["NodeManagerAddress"]
    if address != LOOPBACK:
        raise ClusterError(
            f"Ray {ray.__version__} listens on {address} instead of {LOOPBACK}; refusing to use it"
        )


def _short_directory() -> str:
    directory = tempfile.gettempdir()
    return directory if len(directory) <= LONGEST_TEMPORARY_DIRECTORY else "/tmp"  # noqa: S108


@contextmanager
def _token(ray: ModuleType) -> Iterator[None]:
    """A private token; Ray keeps the first one that it reads in a process, unless reset."""
    loader = ray._raylet.AuthenticationTokenLoader.instance()
    with environment({"RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        loader.reset_cache()
        try:
            yield
        finally:
            loader.reset_cache()


@contextmanager
def safe_path(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init` respect ``PYTHONSAFEPATH``, which the program sets.

    Otherwise Ray puts the working directory first in the workers' import path, unless it believes
    that they get a directory of their own.
    """
    if not os.environ.get("PYTHONSAFEPATH"):
        yield
        return
    jobs = ray.job_config.JobConfig
    with attribute(jobs, "_runtime_env_has_working_dir", lambda _: True):
        yield


_PATIENCE = 10  # seconds


@contextmanager
def ray_cluster(workers: int, settings: RaySettings) -> Iterator[None]:
    """Be connected with Ray within a ``with`` block.

    Args:
        workers: CPUs of a local Ray.
        settings: which Ray, and the GPUs of each worker.

    Raises:
        ClusterError: it cannot be started or reached, or has fewer GPUs than one worker asks for.
    """
    import ray

    own, gpus = not settings.address, settings.gpus
    with local_cluster(workers, gpus=gpus > 0) if own else _joined(settings.address):
        most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes()), default=0.0)
        if gpus > most:  # its workers would wait forever
            raise ClusterError(
                f"ray.gpus: found {gpus:g}, but no machine of the cluster has more than {most:g} "
                "GPUs"
            )
        yield


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Be a driver of a running cluster, which keeps running when the block ends."""
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray runs in this process already; call ray.shutdown() first")
    with (
        environment(QUIET),
        level(logging.getLogger("ray"), logging.ERROR),
        handler_kept(signal.SIGTERM),
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
