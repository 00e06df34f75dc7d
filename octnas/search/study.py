"""The one Optuna study of a search: who is asked, who is told, and what is kept.

Candidates are asked for in batches of a fixed size and told in the order of their numbers, with
the sampler seeded anew by seed and number, so that any executor with any number of workers, broken
off or not, gives the same candidates. Each result is on disk before the study is told.

What a search hands out to be evaluated, and what it takes.

Evaluating candidates one after another, in this process.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from octnas.errors import ArchitectureError, DeviceError, SearchError
from octnas.results.front import Candidate
from octnas.search.samplers import History, ProposalSampler, Propose, Ranges, optuna_sampler
from octnas.search.settings import SearchSettings
from octnas.search.storage import Journal, OutcomeLog, open_study
from octnas.search.surrogate import Rung, expected_loss, rung_of
from octnas.space.cost_table import AdditiveCost, macs_of
from octnas.space.search_space import SearchSpace

Outcome = Mapping[str, float] | str
"""Metrics of an evaluated candidate, ``loss`` among them, or the reason why there are none."""


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate.

    Attributes:
        number: of the trial.
        alphas: by site.
        limit: a loss on the first images above which the others do not matter.
    """

    number: int
    alphas: Mapping[str, float]
    limit: float = math.inf


Evaluate = Callable[[Mapping[str, float], float], Outcome]
"""α by site and the limit of a job to its outcome."""


_ORIGIN = "origin"
_TOLD = (TrialState.COMPLETE, TrialState.FAIL)
_HOPELESS = 8  # failures in a row, from which on it is not the candidates' fault


@dataclass(frozen=True)
class _Asked:
    """A trial that was asked for and not yet told."""

    trial: optuna.Trial
    identity: str
    alphas: Mapping[str, float]
    cost: int
    rung: Rung | None


class Driver:
    """Hands out candidates and takes their outcomes; the study behind it is durable.

    Args:
        space: what to choose from.
        settings: sampler, number of trials, batch size.
        storage: where the study lives.
        study_name: in that storage; an existing study goes on.
        within: ranges of the cost; candidates outside are infeasible.
        design: α by site of the first candidates, with their origin.
        seed: of the sampler.
        cost: that is made small beside the loss; MACs by default.
        propose: what a trial evaluates, for samplers that are not Optuna's.
        log: file that gets one line per outcome, before the study is told.
        on_told: called with each candidate once it was told.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: SearchSettings,
        *,
        storage: BaseStorage,
        study_name: str,
        within: Ranges,
        design: Sequence[tuple[str, Mapping[str, float]]],
        seed: int,
        cost: AdditiveCost | None = None,
        propose: Propose | None = None,
        log: Path,
        on_told: Callable[[Candidate], None] | None = None,
    ) -> None:
        self._space, self._settings, self._seed, self._propose = space, settings, seed, propose
        self._cost = macs_of(space) if cost is None else cost
        self._within, self._on_told, self._lost = within, on_told, 0
        self._outcomes = OutcomeLog(log)
        self._storage, self._study = storage, open_study(storage, study_name)
        for origin, alphas in design[: settings.trials]:
            self._study.enqueue_trial(
                self._searchable(alphas), user_attrs={_ORIGIN: origin}, skip_if_exists=True
            )
        self._found: dict[str, Candidate] = {}
        self._taken: set[tuple[float, ...]] = set()
        self._go_on()
        self._batch: dict[int, _Asked] = {}
        self._to_do: list[Job] = []
        self._reasons: dict[str, str] = {}
        self._rung: Rung | None = None

    def _go_on(self) -> None:
        """Take over the trials that the study holds.

        Raises:
            SearchError: they are of another search space.
        """
        trials = self._study.get_trials(deepcopy=False)
        told = [trial for trial in trials if trial.state in _TOLD]
        self._left = [trial._trial_id for trial in trials if trial.state is TrialState.RUNNING]
        # Counted here, since Optuna goes through all trials whenever it is asked.
        self._told, self._asked = len(told), len(told) + len(self._left)
        self._waiting = len(trials) - self._asked
        try:
            for trial in told:
                self._taken.add(self._space.key(self._searchable(trial.params)))
                if trial.state is TrialState.COMPLETE:
                    self._keep(self._candidate(trial))
        except (ArchitectureError, LookupError, TypeError, ValueError) as error:
            raise SearchError(
                f"the study {self._study.study_name} holds trials of something else "
                f"({type(error).__name__}: {error}); redo the search with --fresh search"
            ) from error

    @property
    def done(self) -> bool:
        """Whether every trial has been told."""
        return not self._batch and self.told >= self._settings.trials

    def ask(self) -> Job | None:
        """The next candidate to evaluate; None where outcomes have to be told first."""
        while not self._to_do and not self._batch and not self.done:
            self._ask_batch()
        return self._to_do.pop(0) if self._to_do else None

    def tell(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of a candidate that was handed out.

        Raises:
            SearchError: too many candidates failed in a row, or all of the search.
        """
        identity = self._batch[number].identity
        if not isinstance(outcome, str) and not math.isfinite(outcome["loss"]):
            outcome = f"the loss is {outcome['loss']}"
        if isinstance(outcome, str):
            self._reasons[identity] = outcome
        else:
            self._outcomes.add(identity, outcome)
        out = {asked.identity for asked in self._batch.values()} - self._reasons.keys()
        if all(one in self._outcomes for one in out):
            self._tell_batch()

    def candidates(self) -> list[Candidate]:
        """Every candidate that was evaluated, once, in the order of their numbers."""
        return list(self._found.values())

    def failures(self) -> list[str]:
        """The reasons of the trials that failed."""
        failed = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [str(trial.user_attrs.get("reason", "unknown")) for trial in failed]

    @property
    def told(self) -> int:
        """Trials that are finished, one way or the other."""
        return self._told

    def _ask_batch(self) -> None:
        """Ask for one batch; what a broken-off process left running comes first."""
        start = self.told - self.told % self._settings.batch_size
        # A process that died while it told a batch has told some of it.
        before = [one for one in self._found.values() if one.trial < start]
        self._rung = rung_of(before, lambda one: self._cost.of(one.alphas))
        end = min(start + self._settings.batch_size, self._settings.trials)
        while self._left:
            # There is no public way from a trial of the past to one that can be told.
            trial = optuna.Trial(self._study, self._left.pop(0))
            self._study.sampler = self._sampler(trial.number)
            self._hand_out(trial)
        while self._asked < end:
            if self._propose is None or self._waiting:
                self._study.sampler = self._sampler(self._asked)
                self._hand_out(self._study.ask())
                self._waiting = max(0, self._waiting - 1)
            else:
                self._hand_out(self._added(self._asked, self._propose))
            self._asked += 1
        self._flush()
        if not self._to_do:
            self._tell_batch()

    def _flush(self) -> None:
        """Let what was asked and told be on disk."""
        if isinstance(self._storage, Journal):
            self._storage.flush()

    def _sampler(self, number: int) -> BaseSampler:
        if self._propose is None:
            return optuna_sampler(self._settings, self._seed, number)
        return ProposalSampler(self._proposal(number, self._propose))

    def _proposal(self, number: int, propose: Propose) -> dict[str, float]:
        history = History(number, list(self._found.values()), self._taken)
        return self._searchable(propose(history))

    def _added(self, number: int, propose: Propose) -> optuna.Trial:
        """A trial with all of what is proposed at once: a database commits each site otherwise."""
        alphas = self._proposal(number, propose)
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=alphas,
                distributions={
                    site.name: CategoricalDistribution(site.choices)
                    for site in self._space.searchable
                },
                constraints=self._constraints(self._cost.of(self._space.quantize(alphas))),
            )
        )
        self._study.sampler = ProposalSampler(alphas)
        # This process alone adds trials, so that its number is known.
        study = self._study._study_id
        added = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.Trial(self._study, added)

    def _hand_out(self, trial: optuna.Trial) -> None:
        """Note a candidate; it is evaluated unless its like was, or is about to be."""
        asked = self._suggest(trial)
        twin = any(asked.identity == other.identity for other in self._batch.values())
        self._batch[trial.number] = asked
        self._taken.add(self._space.key(asked.alphas))
        if asked.identity not in self._outcomes and not twin:
            self._reasons.pop(asked.identity, None)
            limit = math.inf if asked.rung is None else asked.rung.limit(asked.cost)
            self._to_do.append(Job(trial.number, asked.alphas, limit))

    def _suggest(self, trial: optuna.Trial) -> _Asked:
        """Let the sampler choose, and state how far the choice lies outside of the ranges."""
        chosen = {
            site.name: float(trial.suggest_categorical(site.name, site.choices))
            for site in self._space.searchable
        }
        alphas = self._space.quantize(chosen)
        cost, known = self._cost.of(alphas), trial.constraints
        for constraint, excess in self._constraints(cost).items():
            if constraint not in known:
                trial.set_constraint(constraint, excess)
        return _Asked(trial, self._space.architecture(alphas).id, alphas, cost, self._rung)

    def _constraints(self, cost: int) -> dict[str, float]:
        """By how much a cost lies outside of the nearest range, as a share of vanilla's."""
        name, vanilla = self._cost.name, self._cost.vanilla
        low, high = min(self._within, key=lambda one: max(one[0] - cost, cost - one[1]))
        return {f"max_{name}": (cost - high) / vanilla, f"min_{name}": (low - cost) / vanilla}

    def _tell_batch(self) -> None:
        """Tell a batch, unless it ends the search: then it is evaluated again by who goes on."""
        batch = self._batch
        lost = not any(asked.identity in self._outcomes for asked in batch.values())
        in_a_row = self._lost + len(batch) if lost else 0
        nothing = self.told + len(batch) >= self._settings.trials and not self._found
        if lost and (in_a_row >= _HOPELESS or nothing):
            # For good are only failures that are told, and these are not the candidates'.
            reason = self._reasons[next(iter(batch.values())).identity]
            raise SearchError(f"each of the last {in_a_row} candidates failed: {reason}")
        self._lost, self._batch = in_a_row, {}
        for number in sorted(batch):
            self._tell_one(batch[number])
        self._flush()

    def _tell_one(self, asked: _Asked) -> None:
        self._told += 1
        if asked.identity not in self._outcomes:
            asked.trial.set_user_attr("reason", self._reasons[asked.identity])
            self._study.tell(asked.trial, state=TrialState.FAIL)
            return
        loss = expected_loss(self._outcomes[asked.identity], asked.rung)
        told = self._study.tell(asked.trial, [loss, float(asked.cost)])
        candidate = self._candidate(told)
        self._keep(candidate)
        if self._on_told is not None:
            self._on_told(candidate)

    def _keep(self, candidate: Candidate) -> None:
        self._found.setdefault(candidate.id, candidate)

    def _candidate(self, trial: optuna.trial.FrozenTrial) -> Candidate:
        alphas = self._quantized(trial.params)
        identity = self._space.architecture(alphas).id
        measured: Mapping[str, float] = {"loss": trial.values[0]}  # all, if the log is gone
        if identity in self._outcomes:
            measured = self._outcomes[identity]
        return Candidate(
            id=identity,
            alphas=alphas,
            macs=self._space.cost(alphas).macs,
            loss=trial.values[0],
            metrics={f"rank_{name}": value for name, value in measured.items()},
            origin=str(trial.user_attrs.get(_ORIGIN, self._settings.sampler)),
            trial=trial.number,
        )

    def _quantized(self, params: Mapping[str, float]) -> dict[str, float]:
        return self._space.quantize(self._searchable(params))

    def _searchable(self, alphas: Mapping[str, float]) -> dict[str, float]:
        return {site.name: alphas[site.name] for site in self._space.searchable}


def run_local(driver: Driver, evaluate: Evaluate, *, retries: int = 0) -> None:
    """Evaluate one candidate after another in this process until the study is done.

    Args:
        driver: asked and told.
        evaluate: α by site and a limit to metrics.
        retries: how often a candidate is tried again after an exception.

    Raises:
        DeviceError: no candidate can be evaluated any more.
    """
    while (job := driver.ask()) is not None:
        driver.tell(job.number, _attempts(evaluate, job, retries))


def _attempts(evaluate: Evaluate, job: Job, retries: int) -> Outcome:
    """What the first attempt without an exception returns, or the last one's reason."""
    reason = ""
    for _ in range(retries + 1):
        try:
            return evaluate(job.alphas, job.limit)
        except DeviceError:
            # It would fail all others, too, for ever, since a failed trial stays one.
            raise
        except Exception as error:  # noqa: BLE001
            # One candidate that cannot be evaluated must not end the search.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason
