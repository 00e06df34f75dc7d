"""A search whose evaluations run as trials of Ray Tune; the search itself stays in this process.

Tune is used for its workers: processes that are kept, retries, placement. What it writes is thrown
away, since its snapshots can lose finished trials; what a search resumes from is its study.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from octnas.cluster.evaluation import OUTCOME, Evaluate, Evaluation
from octnas.cluster.tune_setup import (
    node_lost,
    reason_of,
    run_config,
    short_name,
    signals_kept,
    tune_files,
)
from octnas.errors import DeviceError

# How the reason of what is not a candidate's fault begins, see `one_line`.
_OF_THE_DEVICE = f"{DeviceError.__name__}: "
# How often a candidate may be lost with a node before that counts as its own failure. Ray takes
# half a minute to notice that a node is gone, and until then gives it work: an attempt a second.
_MOST_LOST = 30


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
    cpus: int = 1,
    gpus: float = 0,
) -> None:
    """Evaluate all that ``driver`` hands out, up to ``workers`` candidates at a time.

    Needs a running Ray, as inside `octnas.cluster.join.ray_cluster`.

    Args:
        driver: asked and told in this thread, never pickled or copied.
        make_evaluate: returns the function that maps ``{site: α}`` and a limit to metrics. It is
            pickled into Ray's object store, and called once by each worker process.
        workers: number of worker processes.
        directory: Tune's files are in a directory below it for as long as this runs.
        retries: how often a candidate is tried again, in another worker process, after an
            exception or the death of its worker. Then the driver is told the reason. What was lost
            with a node is begun again and does not count.
        cpus, gpus: of each worker process.

    Raises:
        ClusterError: Ray does not run in this process.
        DeviceError: a worker's device has failed, again and again.
        Exception: what ``driver`` raises.
    """
    with tune_files(directory) as storage, signals_kept() as keep_signals:
        search = _Search(driver, keep_signals, retries)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Evaluation, make_evaluate=make_evaluate),
                {"cpu": cpus, "gpu": gpus},
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

    def __init__(self, driver: Driver, keep_signals: Callable[[], None], retries: int) -> None:
        super().__init__()
        self._driver, self._retries = driver, retries
        self._keep_signals = keep_signals
        self._jobs: dict[str, Job] = {}  # under evaluation, by Tune's id
        self._reasons: dict[str, str] = {}
        self._failed: Counter[int] = Counter()  # by number, as are those that were lost
        self._lost: Counter[int] = Counter()
        self._again: list[Job] = []
        self._failure: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self._keep_signals()
        self.raise_failure()
        if self._driver.done:
            return Searcher.FINISHED  # type: ignore[return-value] # documented, but not annotated
        job = self._again.pop(0) if self._again else self._driver.ask()
        if job is None:
            if not self._jobs:
                raise RuntimeError("the driver waits, but no candidate is being evaluated")
            return None
        self._jobs[trial_id] = job
        return {"alphas": tuple(job.alphas.items()), "limit": job.limit}

    def note_failure(self, trial_id: str, reason: str, *, lost: bool) -> None:
        """Remember that an attempt failed and why, which Tune does not tell `on_trial_complete`.

        Args:
            trial_id: Tune's.
            reason: on one line.
            lost: whether its node was lost, which is not the candidate's fault.
        """
        self._reasons[trial_id] = reason
        number = self._jobs[trial_id].number
        counts = self._lost if lost and self._lost[number] < _MOST_LOST else self._failed
        counts[number] += 1

    def retries_left(self, trial_id: str) -> int:
        """How often a trial's candidate may still be tried again by its own fault."""
        return max(0, self._retries - self._failed[self._jobs[trial_id].number])

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,
    ) -> None:
        job = self._jobs.pop(trial_id)
        number = job.number
        reason = self._reasons.pop(trial_id, None)
        if error and reason is not None and self._failed[number] <= self._retries:
            # Tune gives up what was still to begin on a lost node, and what has no retries left.
            self._again.append(job)
            return
        reason = reason or "Ray Tune stopped the evaluation"
        outcome = reason if error or result is None else dict(result[OUTCOME])
        if isinstance(outcome, str) and outcome.startswith(_OF_THE_DEVICE):
            # As where candidates are evaluated here: the candidate can be evaluated later.
            self._failure = DeviceError(outcome.removeprefix(_OF_THE_DEVICE))
            return
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
        # Also called when a trial is begun again. Tune would count what was lost with a node.
        trial.max_failures = trial.num_failures + self._search.retries_left(trial.trial_id)
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
        # A trial that waits again has failed before, with the worker that Tune tells of once more.
        if trial.status != Trial.PENDING:
            self._search.note_failure(trial.trial_id, reason_of(trial), lost=node_lost(trial))
