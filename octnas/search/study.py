"""The Optuna study of a search, which is the only record of its evaluations.

Candidates are asked for in batches of a fixed size and reported in the order of their numbers, and
the sampler is reseeded with seed and trial number. So any executor with any number of workers,
interrupted or not, gives the same candidates.

The metrics of an evaluation become a user attribute of its trial as soon as they are known; the
trial is completed with its batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from octnas.errors import ArchitectureError, DeviceError, SearchError
from octnas.results.front import Candidate
from octnas.search.samplers import Design, Key, Propose, optuna_sampler
from octnas.search.settings import SearchSettings
from octnas.search.storage import Journal, open_study
from octnas.search.surrogate import Screening, expected_loss
from octnas.space.budgets import Region
from octnas.space.search_space import SearchSpace

Outcome = Mapping[str, float] | str
"""Metrics of a candidate, ``loss`` among them, or the reason why its evaluation failed."""

Evaluate = Callable[[Mapping[str, float], float], Outcome]
"""Maps α by site and the limit of a job to an outcome."""

# User attributes of a trial.
_ORIGIN, _METRICS, _REASON = "origin", "metrics", "reason"
# Consecutive failures after which the cause is not the candidates.
_MOST_FAILURES = 8


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate.

    Attributes:
        trial: asked of Optuna and not reported yet.
        key: of the architecture, see `SearchSpace.key`.
        alphas: α by site.
        cost: the objective beside the loss.
        limit: loss on the first images above which the other images are not needed.
    """

    trial: optuna.Trial
    key: Key
    alphas: Mapping[str, float]
    cost: int
    limit: float

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number


class Driver:
    """Asks the study for candidates and reports their outcomes to it.

    Args:
        space, settings: of the search.
        storage, study_name: of the study, which is resumed if it exists.
        regions: what the budgets admit, by the objective beside the loss; candidates outside are
            infeasible.
        design: the first candidates.
        seed: of the sampler.
        propose: what a trial evaluates, for samplers that are not Optuna's.
        on_reported: called with each candidate once it is reported.

    Attributes:
        reported: number of finished trials, failed ones included.

    Raises:
        SearchError: the study is of another search space.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: SearchSettings,
        *,
        storage: BaseStorage,
        study_name: str,
        regions: Sequence[Region],
        design: Design,
        seed: int,
        propose: Propose | None = None,
        on_reported: Callable[[Candidate], None] = lambda _: None,
    ) -> None:
        self._space, self._settings, self._seed, self._propose = space, settings, seed, propose
        self._cost = regions[0].levels.cost
        self._regions, self._on_reported = regions, on_reported
        self._storage, self._study = storage, open_study(storage, study_name)
        trials = self._study.get_trials(deepcopy=False)
        self._found = evaluated(self._study, space, settings)
        finished = [trial for trial in trials if trial.state.is_finished()]
        with _same_space(self._study):
            self._taken = {_key(space, trial.params) for trial in finished}
            self._metrics = {
                _key(space, trial.params): trial.user_attrs[_METRICS]
                for trial in trials
                if _METRICS in trial.user_attrs
            }
        self._running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        # Never asked for a value: proposed and enqueued trials have all of theirs.
        self._study.sampler = RandomSampler()
        # Counted here, since Optuna goes through all trials whenever it is asked.
        self.reported, self._enqueued = len(finished), min(len(design), settings.trials)
        for origin, alphas in design[len(trials) : self._enqueued]:
            self._study.enqueue_trial(_searchable(space, alphas), user_attrs={_ORIGIN: origin})
        self._batch: dict[int, Job] = {}
        self._to_do: list[Job] = []
        self._reasons: dict[Key, str] = {}
        self._failures_in_a_row = 0
        self._screening: Screening | None = None

    @property
    def done(self) -> bool:
        """Whether every trial is reported."""
        return not self._batch and self.reported >= self._settings.trials

    def ask(self) -> Job | None:
        """The next candidate to evaluate; None while that depends on outcomes still to come."""
        while not self._to_do and not self._batch and not self.done:
            self._ask_batch()
        return self._to_do.pop(0) if self._to_do else None

    def tell(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of a job; metrics are on disk when this returns.

        Raises:
            SearchError: too many candidates failed in a row, or all of the search.
        """
        job = self._batch[number]
        if not isinstance(outcome, str) and not math.isfinite(outcome["loss"]):
            outcome = f"the loss is {outcome['loss']}"
        if isinstance(outcome, str):
            self._reasons[job.key] = outcome
        else:
            job.trial.set_user_attr(_METRICS, dict(outcome))
            self._flush()
            self._metrics[job.key] = outcome
        if all(
            one.key in self._metrics or one.key in self._reasons for one in self._batch.values()
        ):
            self._report_batch()

    def candidates(self) -> list[Candidate]:
        """Every evaluated candidate, once, in the order of the trials."""
        return list(self._found.values())

    def failures(self) -> list[str]:
        """The reasons of the failed trials."""
        failed = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [str(trial.user_attrs.get(_REASON, "unknown")) for trial in failed]

    def _ask_batch(self) -> None:
        """Ask for a batch, beginning with the trials that an interrupted process left running."""
        start = self.reported - self.reported % self._settings.batch_size
        # An interrupted process may have reported part of this batch.
        before = [one for one in self._found.values() if one.trial < start]
        self._screening = Screening.after(before, lambda one: self._cost.of(one.alphas))
        running, self._running = self._running, []
        for trial in running:
            self._seed_sampler(trial.number)
            # Optuna has no public way to report a trial of another process.
            self._hand_out(optuna.Trial(self._study, trial._trial_id))
        end = min(start + self._settings.batch_size, self._settings.trials)
        for number in range(self.reported + len(running), end):
            self._hand_out(self._ask(number))
        self._flush()
        if not self._to_do:
            self._report_batch()

    def _seed_sampler(self, number: int) -> None:
        if self._propose is None:
            self._study.sampler = optuna_sampler(self._settings, self._seed, number)

    def _ask(self, number: int) -> optuna.Trial:
        """The next trial; a proposed one has all sites at once, which is one write."""
        self._seed_sampler(number)
        if self._propose is None or number < self._enqueued:
            return self._study.ask()
        alphas = self._propose(number, list(self._found.values()), self._taken)
        choices = {site.name: site.choices for site in self._space.searchable}
        trial = optuna.create_trial(
            state=TrialState.RUNNING,
            params=_searchable(self._space, alphas),
            distributions={name: CategoricalDistribution(some) for name, some in choices.items()},
            constraints=self._constraints(self._space.quantize(alphas)),
        )
        self._study.add_trial(trial)
        study = self._study._study_id
        # The number is known, since only this process adds trials.
        added = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.Trial(self._study, added)

    def _hand_out(self, trial: optuna.Trial) -> None:
        """Add a trial to the batch; to be evaluated unless its architecture was or will be."""
        for site in self._space.searchable:
            trial.suggest_categorical(site.name, site.choices)
        alphas = _quantized(self._space, trial.params)
        cost, key, known = self._cost.of(alphas), tuple(alphas.values()), trial.constraints
        for constraint, excess in self._constraints(alphas).items():
            if constraint not in known:
                trial.set_constraint(constraint, excess)
        limit = math.inf if self._screening is None else self._screening.limit(cost)
        job = Job(trial, key, alphas, cost, limit)
        twin = any(key == other.key for other in self._batch.values())
        self._batch[trial.number] = job
        self._taken.add(key)
        if key not in self._metrics and not twin:
            self._reasons.pop(key, None)
            self._to_do.append(job)

    def _constraints(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """By how much an architecture is outside the nearest region, as a share of vanilla's."""
        excesses = (one.excess(alphas) for one in self._regions)
        return min(excesses, key=lambda one: max(one.values()))

    def _report_batch(self) -> None:
        """Report a batch, unless it ends the search: then resuming evaluates it again."""
        batch = self._batch
        failed = not any(job.key in self._metrics for job in batch.values())
        in_a_row = self._failures_in_a_row + len(batch) if failed else 0
        nothing = self.reported + len(batch) >= self._settings.trials and not self._found
        if failed and (in_a_row >= _MOST_FAILURES or nothing):
            # Reported failures are final, and these are not the candidates' fault.
            reason = self._reasons[next(iter(batch.values())).key]
            raise SearchError(f"each of the last {in_a_row} candidates failed: {reason}")
        self._failures_in_a_row, self._batch = in_a_row, {}
        for number in sorted(batch):
            self._report(batch[number])
        self._flush()

    def _report(self, job: Job) -> None:
        self.reported += 1
        if job.key not in self._metrics:
            job.trial.set_user_attr(_REASON, self._reasons[job.key])
            self._study.tell(job.trial, state=TrialState.FAIL)
            return
        metrics = self._metrics[job.key]
        loss = expected_loss(metrics, self._screening)
        trial = self._study.tell(job.trial, [loss, float(job.cost)])
        candidate = _candidate(self._space, self._settings, trial, metrics)
        self._found.setdefault(job.key, candidate)
        self._on_reported(candidate)

    def _flush(self) -> None:
        if isinstance(self._storage, Journal):
            self._storage.flush()


def evaluated(
    study: optuna.Study, space: SearchSpace, settings: SearchSettings
) -> dict[Key, Candidate]:
    """Every evaluated candidate of a study, once, in the order of the trials.

    Raises:
        SearchError: the study is of another search space.
    """
    found: dict[Key, Candidate] = {}
    with _same_space(study):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            # Studies of earlier versions have the loss alone.
            metrics = trial.user_attrs.get(_METRICS, {"loss": trial.values[0]})
            key = _key(space, trial.params)
            found.setdefault(key, _candidate(space, settings, trial, metrics))
    return found


@contextmanager
def _same_space(study: optuna.Study) -> Iterator[None]:
    """Name the study whose trials cannot be read."""
    try:
        yield
    except (ArchitectureError, LookupError, TypeError, ValueError) as error:
        raise SearchError(
            f"study {study.study_name}: its trials are of another search space "
            f"({type(error).__name__}: {error}); redo the search with --fresh search"
        ) from error


def _candidate(
    space: SearchSpace,
    settings: SearchSettings,
    trial: FrozenTrial,
    metrics: Mapping[str, float],
) -> Candidate:
    alphas = _quantized(space, trial.params)
    return Candidate(
        id=space.architecture(alphas).id,
        alphas=alphas,
        macs=space.cost(alphas).macs,
        loss=trial.values[0],
        metrics={f"rank_{name}": value for name, value in metrics.items()},
        origin=str(trial.user_attrs.get(_ORIGIN, settings.sampler)),
        trial=trial.number,
    )


def _searchable(space: SearchSpace, alphas: Mapping[str, float]) -> dict[str, float]:
    return {site.name: alphas[site.name] for site in space.searchable}


def _quantized(space: SearchSpace, params: Mapping[str, float]) -> dict[str, float]:
    return space.quantize(_searchable(space, params))


def _key(space: SearchSpace, params: Mapping[str, float]) -> Key:
    return tuple(_quantized(space, params).values())


def run_local(driver: Driver, evaluate: Evaluate, *, retries: int = 0) -> None:
    """Evaluate one candidate after another in this process until the study is done.

    Raises:
        DeviceError: no candidate can be evaluated any more.
    """
    while (job := driver.ask()) is not None:
        driver.tell(job.number, _evaluate(evaluate, job, retries))


def _evaluate(evaluate: Evaluate, job: Job, retries: int) -> Outcome:
    """The outcome of the first attempt that succeeds, or the reason why the last one failed."""
    reason = ""
    for _ in range(retries + 1):
        try:
            return evaluate(job.alphas, job.limit)
        except DeviceError:
            # All other candidates would fail too, and failed trials are final.
            raise
        except Exception as error:  # noqa: BLE001
            # One failing candidate must not end the search.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason
