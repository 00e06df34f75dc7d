"""A search whose evaluations run as trials of Ray Tune; the search itself stays in this process.

Tune is used for its workers: processes that are kept, retries, placement. What it writes is thrown
away, since its snapshots can lose finished trials; what a search resumes from is its study.
"""

import logging
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from octnas.cluster.evaluation import (
    OUTCOME,
    Evaluate,
    Evaluation,
    EvaluationError,
    one_line,
    shortened,
)
from octnas.cluster.temporary import environment, level
from octnas.errors import ClusterError

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no JSON, CSV and TensorBoard files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, not an early return
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver is told
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # no snapshots on the way; they grow with the trials
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # what decides may be worked out here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # in workers, relative paths mean what they mean here
}


class Job(Protocol):
    """A candidate to evaluate."""

    @property
    def number(self) -> int:
        """Number of the Optuna trial."""

    @property
    def alphas(self) -> Mapping[str, float]:
        """α by site."""

    @property
    def limit(self) -> float:
        """A loss on the first images above which the others do not matter."""


class Driver(Protocol):
    """Hands out candidates and takes their outcomes; always called in the same thread."""

    def ask(self) -> Job | None:
        """The next candidate, or None while that depends on outcomes that are still to come."""

    def tell(self, number: int, outcome: Mapping[str, float] | str) -> None:
        """Take a candidate's metrics, or the reason why there are none."""

    @property
    def done(self) -> bool:
        """Whether nothing more will be handed out."""


def run_with_tune(
    driver: Driver,
    make_evaluate: Callable[[], Evaluate],
    *,
    workers: int,
    directory: Path,
    retries: int = 0,
    gpus: float = 0,
) -> None:
    """Evaluate all that ``driver`` hands out, up to ``workers`` candidates at a time.

    Needs a running Ray, as inside `octnas.cluster.join.ray_cluster`.

    Args:
        driver: asked and told in this thread, never pickled or copied.
        make_evaluate: returns the function that maps ``{site: α}`` and a limit to metrics. It is
            pickled into Ray's object store, and called once by each worker process.
        workers: number of worker processes, with one CPU each.
        directory: Tune's files are in a directory below it for as long as this runs.
        retries: how often a candidate is tried again, in another worker process, after an
            exception or the death of its worker. Then the driver is told the reason.
        gpus: of each worker process.

    Raises:
        ClusterError: Ray does not run in this process.
        Exception: what ``driver`` raises.
    """
    with tune_files(directory) as storage, signals_kept() as keep_signals:
        search = _Search(driver, keep_signals)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Evaluation, make_evaluate=make_evaluate),
                {"cpu": 1, "gpu": gpus},
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_Schedule(search, workers),
                num_samples=-1,  # until the search is finished
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=short_name,
            ),
            run_config=run_config(storage, retries),
        )
        tuner.fit()
    search.raise_failure()


class _Search(Searcher):
    """Asks and tells the driver. Tune calls it in the thread and process of `run_with_tune`."""

    def __init__(self, driver: Driver, keep_signals: Callable[[], None]) -> None:
        super().__init__()
        self._driver = driver
        self._keep_signals = keep_signals
        self._numbers: dict[str, int] = {}  # of the candidates under evaluation, by Tune's id
        self._reasons: dict[str, str] = {}
        self._failure: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self._keep_signals()
        self.raise_failure()
        if self._driver.done:
            return Searcher.FINISHED  # type: ignore[return-value] # documented, but not annotated
        job = self._driver.ask()
        if job is None:
            if not self._numbers:
                raise RuntimeError("the driver waits, but no candidate is being evaluated")
            return None
        self._numbers[trial_id] = job.number
        return {"alphas": tuple(job.alphas.items()), "limit": job.limit}

    def notereason_of(self, trial_id: str, reason: str) -> None:
        """Remember why a trial failed, which Tune does not tell `on_trial_complete`."""
        self._reasons[trial_id] = reason

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,
    ) -> None:
        number = self._numbers.pop(trial_id)
        reason = self._reasons.pop(trial_id, "Ray Tune stopped the evaluation")
        outcome = reason if error or result is None else dict(result[OUTCOME])
        try:
            self._driver.tell(number, outcome)
        except Exception as failure:  # noqa: BLE001 - Tune would log it and retry the trial
            self._failure = failure

    def raise_failure(self) -> None:
        """Raise what the driver raised when it was told an outcome."""
        if self._failure is not None:
            raise self._failure

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: Tune's snapshots hold no driver."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: a search resumes from its study."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, since Tune pickles its settings, and this among them."""
        return {}


class _Schedule(FIFOScheduler):
    """First in, first out; and the hook by which Tune shows failures and lets us keep workers.

    Tune ends more workers than it should, and each that starts loads the supernet again:

    - While no trial waits, it keeps one idle worker and ends the others, so every batch of the
      driver would close with dead workers. The number that it keeps is raised to all of them.
    - A worker that gets idle is given to the longest waiting trial, even if a worker is being
      started for that one, which is then ended; if evaluations are shorter than starts, one worker
      would do it all. So trials for which no worker is being started come first.
    """

    def __init__(self, search: _Search, workers: int) -> None:
        super().__init__()
        self._search = search
        self._workers = workers
        self._kept = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not self._kept:
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, self._workers)
            self._kept = True

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        controller = tune_controller._tune_controller
        waiting = [trial for trial in controller.get_trials() if trial.status == Trial.PENDING]
        new = (trial for trial in waiting if trial not in controller._trial_to_actor)
        return next(new, waiting[0] if waiting else None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        self._search.notereason_of(trial.trial_id, reason_of(trial))


def reason_of(trial: Trial) -> str:
    """Why a trial failed, on one line, from the file that Tune has just written."""
    if trial.pickled_error_file is None:
        return "Ray Tune gave the evaluation up"
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301 - our own
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return (
            f"{type(error).__name__}: the worker process died (killed, out of memory, or crashed)"
        )
    if isinstance(error, RayTaskError):
        error = error.cause
    return shortened(str(error) if isinstance(error, EvaluationError) else one_line(error))


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
        tempfile.TemporaryDirectory(prefix=".tune-", dir=directory.resolve()) as storage,
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
