"""What all that runs under Ray Tune shares: settings, files, and why a trial failed."""

import logging
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.tune.experiment import Trial

from octnas.cluster.evaluation import EvaluationError, one_line, shortened
from octnas.errors import ClusterError
from octnas.files import DRAFT
from octnas.temporary import environment, level

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no JSON, CSV and TensorBoard files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, not an early return
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver is told
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # no snapshots on the way; they grow with the trials
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # what decides may be worked out here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # in workers, relative paths mean what they mean here
}


def reason_of(trial: Trial) -> str:
    """Why a trial failed, on one line."""
    error = _error_of(trial)
    if error is None:
        return "Ray Tune gave the evaluation up"
    if isinstance(error, ActorUnavailableError):
        return f"{type(error).__name__}: the worker process cannot be reached any more"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return (
            f"{type(error).__name__}: the worker process died (killed, out of memory, or crashed)"
        )
    if isinstance(error, RayTaskError):
        error = error.cause
    return shortened(str(error) if isinstance(error, EvaluationError) else one_line(error))


def node_lost(trial: Trial) -> bool:
    """Whether a trial failed since its worker's node is gone, or cannot be reached."""
    error = _error_of(trial)
    if isinstance(error, ActorUnavailableError):  # Ray does not know, yet, what became of it
        return True
    gone = (node["NodeID"] for node in ray.nodes() if not node["Alive"])
    return isinstance(error, RayActorError) and any(node in str(error) for node in gone)


def _error_of(trial: Trial) -> BaseException | None:
    """What a trial has raised, from the file that Tune has just written."""
    if trial.pickled_error_file is None:
        return None
    error: BaseException = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301 - our own
    return error


def short_name(trial: Trial) -> str:
    """Of a trial's folder."""
    return str(trial.trial_id)


@contextmanager
def tune_files(directory: Path) -> Iterator[str]:
    """A folder for what Tune writes, which goes when the block ends; and Tune says nothing.

    Raises:
        ClusterError: Ray does not run in this process.
    """
    if not ray.is_initialized():  # Tune would start a Ray without octnas's precautions
        raise ClusterError("Ray does not run; use octnas.cluster.join.ray_cluster")
    directory.mkdir(parents=True, exist_ok=True)
    with (
        environment(_TUNE_ENVIRONMENT),
        level(logging.getLogger("ray.tune"), logging.CRITICAL),
        tempfile.TemporaryDirectory(prefix=f".tune{DRAFT}", dir=directory.resolve()) as storage,
    ):
        yield storage


def run_config(storage: str, retries: int) -> tune.RunConfig:
    """How Tune runs what it is given: trials are tried again, and nothing is kept.

    Without callbacks: to count them, Tune would import MLflow, which takes a second.
    """
    return tune.RunConfig(
        name="run",
        storage_path=storage,
        failure_config=tune.FailureConfig(max_failures=retries),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        verbose=0,
    )


@contextmanager
def signals_kept() -> Iterator[Callable[[], None]]:
    """Keep the handler of SIGUSR1, by which batch systems announce the end of a job.

    Tune puts its own in place, after the settings and before the first question to the search; so
    that is where the function that is given here has to be called.
    """
    before = signal.getsignal(signal.SIGUSR1)

    def keep() -> None:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGUSR1, before)

    try:
        yield keep
    finally:
        keep()
