"""A search whose evaluations run as trials of Ray Tune; the search itself stays in this process.

Tune's own snapshots are switched off: what a search resumes from is its study.
"""

import logging
import os
import pickle
import signal
import threading
import warnings
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

from octnas.cluster.environment import environment
from octnas.cluster.evaluation import OUTCOME, Evaluate, Evaluation, EvaluationError, one_line
from octnas.errors import ClusterError


class Job(Protocol):
    """A candidate to evaluate."""

    @property
    def number(self) -> int:
        """Number of the Optuna trial."""

    @property
    def alphas(self) -> Mapping[str, float]:
        """α by site."""


class Driver(Protocol):
    """What hands out candidates and takes their outcomes; always called in one thread."""

    def ask(self) -> Job | None:
        """The next candidate, or None if that depends on outcomes that are still to come."""

    def tell(self, number: int, outcome: Mapping[str, float] | str) -> None:
        """Take the metrics of a candidate, or the reason why there are none."""

    @property
    def done(self) -> bool:
        """Whether there is nothing more to hand out."""


# Read by Ray when a run starts, or in its workers.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result.json, progress.csv, TensorBoard files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, not an early return
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver is told
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # snapshots grow with the trials and nobody reads them
    "TUNE_RESTORE_RETRY_NUM": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers keep the directory that relative paths are meant from
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_with_tune(
    driver: Driver,
    make_evaluate: Callable[[], Evaluate],
    *,
    workers: int,
    directory: Path,
    retries: int = 1,
) -> None:
    """Evaluate all that ``driver`` hands out, ``workers`` candidates at a time.

    Needs a running Ray, as inside `octnas.cluster.start.local_cluster`.

    Args:
        driver: asked and told in this thread, never copied.
        make_evaluate: returns the function that maps ``{site: α}`` to metrics. It is pickled into
            Ray's object store once, and called once by each worker process.
        workers: number of worker processes, with one CPU each.
        directory: Tune keeps a few small files below it, in ``tune/``.
        retries: how often a candidate is tried again after an exception or the death of its
            worker. After that the driver is told the reason.

    Raises:
        ClusterError: Ray does not run in this process.
        Exception: whatever ``driver`` raises.
    """
    if not ray.is_initialized():  # else Tune would start a Ray without our precautions
        raise ClusterError("Ray does not run; use octnas.cluster.start.local_cluster")
    with environment(_TUNE_ENVIRONMENT), _quiet(), _signals_kept() as restore_signals:
        search = _Search(driver, restore_signals)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Evaluation, make_evaluate=make_evaluate), {"cpu": 1}
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_Schedule(search, workers),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(directory.resolve()),
                failure_config=tune.FailureConfig(max_failures=retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()
    search.raise_failure()


class _Search(Searcher):
    """Asks and tells the driver; Tune calls this in the thread of `run_with_tune`."""

    def __init__(self, driver: Driver, restore_signals: Callable[[], None]) -> None:
        super().__init__()
        self._driver = driver
        self._restore_signals = restore_signals
        self._numbers: dict[str, int] = {}  # of the running trials, by Tune's id
        self._reasons: dict[str, str] = {}
        self._failure: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._restore_signals()
        self.raise_failure()
        if self._driver.done:
            return str(Searcher.FINISHED)
        job = self._driver.ask()
        if job is None:
            if not self._numbers and not self._driver.done:
                raise RuntimeError("the driver waits for outcomes, but no candidate is being evaluated")
            return None
        self._numbers[trial_id] = job.number
        return {"alphas": tuple(job.alphas.items())}

    def note_reason(self, trial_id: str, reason: str) -> None:
        """Remember why a trial failed, for `on_trial_complete`, which Tune does not tell."""
        self._reasons[trial_id] = reason

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
    ) -> None:
        number = self._numbers.pop(trial_id)
        reason = self._reasons.pop(trial_id, "stopped by Ray Tune")
        outcome = reason if error or result is None else dict(result[OUTCOME])
        try:
            self._driver.tell(number, outcome)
        except Exception as failure:  # noqa: BLE001 - Tune would swallow it and retry the trial
            self._failure = failure

    def raise_failure(self) -> None:
        """Raise what the driver raised when it was told an outcome, if it did."""
        if self._failure is not None:
            raise self._failure

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a snapshot neither holds nor needs the driver."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the driver's study is what a search resumes from."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings into tuner.pkl


class _Schedule(FIFOScheduler):
    """First in, first out; also the one place where Tune lets us see failures and the controller.

    Tune keeps at most one idle actor when no trial waits for it. Then every batch of the driver
    would end with dead workers, and the next begin with loading the supernet again.
    """

    def __init__(self, search: _Search, workers: int) -> None:
        super().__init__()
        self._search = search
        self._idle_actors = workers

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if self._idle_actors:
            tune_controller._tune_controller._actor_cache.increase_max(
                trial.placement_group_factory, self._idle_actors
            )
            self._idle_actors = 0

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._search.note_reason(trial.trial_id, _reason(trial))


def _reason(trial: Trial) -> str:
    path = trial.pickled_error_file
    if path is None:
        return one_line(RuntimeError(f"Ray Tune failed: {Path(trial.error_file).read_text()}"))
    error = pickle.loads(Path(path).read_bytes())  # noqa: S301 - Tune wrote it, for us
    if isinstance(error, RayTaskError):
        cause = error.cause
        return str(cause) if isinstance(cause, EvaluationError) else one_line(cause)
    return one_line(error)


@contextmanager
def _signals_kept() -> Iterator[Callable[[], None]]:
    """Tune takes SIGUSR1 for itself, which batch systems send before the wall time."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGUSR1)

    def restore() -> None:
        if main and before is not None:
            signal.signal(signal.SIGUSR1, before)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def _quiet() -> Iterator[None]:
    yield
