"""A search whose evaluations run as trials of Ray Tune, while the study stays in this process.

Tune provides workers that outlive a trial, retries and placement. Its own files are discarded,
since its snapshots can lose finished trials: a search resumes from its study.
"""

import logging
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from signal import SIGUSR1
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from octnas.errors import ClusterError, DeviceError
from octnas.io.files import DRAFT
from octnas.runtime.temporary import environment, handler_kept, level

Evaluate = Callable[[Mapping[str, float], float], Mapping[str, float]]
"""α by site and the limit of a job to metrics."""

OUTCOME = "outcome"
LONGEST_REASON = 500  # characters; some of Ray's messages are pages


class EvaluationError(Exception):
    """An evaluation failed; the text is the type and message of its exception, on one line.

    It takes the place of the exception itself, which may not survive pickling.
    """


class Evaluation(tune.Trainable):
    """One worker. Tune hands it a trial's config: ``{"alphas": ((site, α), ...), "limit": …}``.

    Pairs and not a dict, here and in the result, since Tune flattens dicts into names.
    """

    def setup(
        self, config: dict[str, Any], make_evaluate: Callable[[], Evaluate] | None = None
    ) -> None:
        """Keep the first candidate and the factory.

        Called here, a failing factory would be the death of an actor; in `step` it is the failure
        of a trial, with its reason.
        """
        assert make_evaluate is not None
        self._alphas, self._limit = dict(config["alphas"]), float(config["limit"])
        self._make_evaluate = make_evaluate

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate, and keep what the factory has loaded."""
        self._alphas, self._limit = dict(new_config["alphas"]), float(new_config["limit"])
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the candidate."""
        try:
            metrics = self._evaluate(self._alphas, self._limit)
            outcome = tuple((name, float(value)) for name, value in metrics.items())
        except Exception as error:  # noqa: BLE001 - the reason of a failed trial
            raise EvaluationError(one_line(error)) from None
        return {OUTCOME: outcome, "done": True}

    @cached_property
    def _evaluate(self) -> Evaluate:
        return self._make_evaluate()


def one_line(error: BaseException) -> str:
    """Type and message of an exception without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def shortened(text: str) -> str:
    """The end of a reason, where most say what happened."""
    return text if len(text) <= LONGEST_REASON else "… " + text[-LONGEST_REASON:]


_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no JSON, CSV and TensorBoard files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, not an early return
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver gets them
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # no snapshots on the way; they grow with the trials
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # what decides may be worked out here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # in workers, relative paths mean what they mean here
}


def reason_of(trial: Trial) -> str:
    """Why a trial failed, on one line."""
    error = _error_of(trial)
    if error is None:
        return "Ray Tune gave up on the evaluation"
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
    """Whether a trial failed because its worker's node died or is unreachable."""
    error = _error_of(trial)
    if isinstance(error, ActorUnavailableError):  # Ray does not know its state yet
        return True
    dead = (node["NodeID"] for node in ray.nodes() if not node["Alive"])
    return isinstance(error, RayActorError) and any(node in str(error) for node in dead)


def _error_of(trial: Trial) -> BaseException | None:
    """The exception of a trial, from the file that Tune has just written."""
    if trial.pickled_error_file is None:
        return None
    error: BaseException = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301 - our own
    return error


def short_name(trial: Trial) -> str:
    """Name of a trial's folder."""
    return str(trial.trial_id)


@contextmanager
def tune_files(directory: Path) -> Iterator[str]:
    """A temporary folder for Tune's files; Tune also prints nothing within the block.

    Raises:
        ClusterError: Ray does not run in this process.
    """
    if not ray.is_initialized():  # Tune would start a Ray without octnas's precautions
        raise ClusterError("Ray does not run; use octnas.cluster.start.ray_cluster")
    directory.mkdir(parents=True, exist_ok=True)
    with (
        environment(_TUNE_ENVIRONMENT),
        level(logging.getLogger("ray.tune"), logging.CRITICAL),
        tempfile.TemporaryDirectory(prefix=f".tune{DRAFT}", dir=directory.resolve()) as storage,
    ):
        yield storage


def run_config(storage: str, retries: int) -> tune.RunConfig:
    """Trials are retried, and nothing is kept."""
    return tune.RunConfig(
        name="run",
        storage_path=storage,
        failure_config=tune.FailureConfig(max_failures=retries),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        verbose=0,
    )


# How a reason begins that is not the candidate's fault, see `one_line`.
_OF_THE_DEVICE = f"{DeviceError.__name__}: "
# How often a candidate may be lost with a node before that counts as its own failure. Ray takes
# half a minute to notice that a node died, and until then assigns it an attempt a second.
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

    Needs a running Ray, as inside `octnas.cluster.start.ray_cluster`.

    Args:
        driver: called in this thread, never pickled or copied.
        make_evaluate: returns the function that maps ``{site: α}`` and a limit to metrics. It is
            pickled into Ray's object store, and called once by each worker process.
        workers: number of worker processes.
        directory: for temporary files of Tune.
        retries: how often a candidate is tried again, in another worker process, after an
            exception or the death of its worker, before the driver gets the reason. Losses with a
            node do not count.
        cpus, gpus: of each worker process.

    Raises:
        ClusterError: Ray does not run in this process.
        DeviceError: a worker's device has failed, again and again.
        Exception: what ``driver`` raises.
    """
    # Tune installs its own handler of SIGUSR1, by which batch systems announce the end of a job,
    # before it first asks the search.
    with tune_files(directory) as storage, handler_kept(SIGUSR1) as keep_signals:
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
        """Remember why an attempt failed, which Tune does not pass to `on_trial_complete`.

        If its node was ``lost``, that is not the candidate's fault.
        """
        self._reasons[trial_id] = reason
        number = self._jobs[trial_id].number
        counts = self._lost if lost and self._lost[number] < _MOST_LOST else self._failed
        counts[number] += 1

    def retries_left(self, trial_id: str) -> int:
        """How often a trial's candidate may still be retried after its own failures."""
        return max(0, self._retries - self._failed[self._jobs[trial_id].number])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._jobs.pop(trial_id)
        reason = self._reasons.pop(trial_id, None)
        if error and reason is not None and self._failed[job.number] <= self._retries:
            # Tune gives up trials that had not begun on a lost node, or have no retries left.
            self._again.append(job)
            return
        reason = reason or "Ray Tune stopped the evaluation"
        outcome = reason if error or result is None else dict(result[OUTCOME])
        if isinstance(outcome, str) and outcome.startswith(_OF_THE_DEVICE):
            # As in local evaluation: the candidate can be evaluated later.
            self._failure = DeviceError(outcome.removeprefix(_OF_THE_DEVICE))
            return
        try:
            self._driver.tell(job.number, outcome)
        except Exception as failure:  # noqa: BLE001 - Tune would log it and retry the trial
            self._failure = failure

    def raise_failure(self) -> None:
        """Raise the driver's exception when it took an outcome."""
        if self._failure is not None:
            raise self._failure

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: Tune's snapshots hold no driver."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: a search resumes from its study."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, since Tune pickles its settings, and this among them."""
        return {}


def internals(tune_controller: Any) -> tuple[Any | None, Collection[Trial]]:
    """Tune's cache of idle workers, and the trials for which it has started a worker.

    Both are private attributes of Ray 2.60. Without them, the cache is None and the trials are
    empty: workers end more often than they should, and the search takes longer.
    """
    controller = getattr(tune_controller, "_tune_controller", None)
    return getattr(controller, "_actor_cache", None), getattr(controller, "_trial_to_actor", ())


class _Schedule(FIFOScheduler):
    """First in, first out; also reports failures, and makes Tune keep its workers.

    Tune ends more workers than it should, and each that starts loads the supernet again:

    - While no trial waits, it keeps one idle worker and ends the others, so every batch of the
      driver would end with dead workers. Here it keeps all of them.
    - An idle worker is given to the longest waiting trial, even if a worker is being started for
      that one, which is then ended; if evaluations are shorter than starts, one worker would do all
      the work. So trials for which no worker is being started come first.
    """

    def __init__(self, search: _Search, workers: int) -> None:
        super().__init__()
        self._search = search
        self._workers = workers
        self._kept = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Also called when a trial is retried. Tune would count losses with a node.
        trial.max_failures = trial.num_failures + self._search.retries_left(trial.trial_id)
        cache, _ = internals(tune_controller)
        if cache is not None and not self._kept:
            cache.increase_max(trial.placement_group_factory, self._workers)
            self._kept = True

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        _, started = internals(tune_controller)
        waiting = [one for one in tune_controller.get_trials() if one.status == Trial.PENDING]
        new = (trial for trial in waiting if trial not in started)
        return next(new, waiting[0] if waiting else None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        # A waiting trial has failed before, with a worker that Tune reports a second time.
        if trial.status != Trial.PENDING:
            self._search.note_failure(trial.trial_id, reason_of(trial), lost=node_lost(trial))
