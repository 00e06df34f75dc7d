"""Many trainings as trials of Ray Tune; ASHA may stop those that others dominate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGUSR1
from typing import Any, Generic, TypeVar

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from octnas.cluster.tune import (
    EvaluationError,
    node_lost,
    one_line,
    reason_of,
    run_config,
    short_name,
    tune_files,
)
from octnas.errors import ClusterError
from octnas.runtime.temporary import handler_kept

Item = TypeVar("Item")
Report = Callable[[Mapping[str, float]], None]
OnReport = Callable[[Any, Mapping[str, float]], None]

EPOCH = "epoch"
_MARGIN, _INDEX = "margin", "index"
# How often trainings lost with a node are started again, after all others have ended.
_MOST_LOST = 3


@dataclass(frozen=True)
class Halving(Generic[Item]):
    """Which trainings may be stopped, and by what (ASHA, Li et al., arXiv 1810.05934).

    A training is behind if its metric at the same epoch is below the best one of a network that
    costs no more. At every rung those that are farthest behind are stopped; one that is not behind
    always continues.

    Attributes:
        metric: that a training reports with every ``epoch``; the higher, the better.
        cost: of an item's network.
        may_stop: whether an item's training may be stopped at all.
        epochs: of a whole training.
        grace: epochs before the first rung.
        reduction: at a rung, one in ``reduction`` of those that are behind continues.
    """

    metric: str
    cost: Callable[[Item], float]
    may_stop: Callable[[Item], bool]
    epochs: int
    grace: int
    reduction: float


def train_with_tune(
    train: Callable[[Item, Report], None],
    items: Sequence[Item],
    on_report: Callable[[Item, Mapping[str, float]], None],
    *,
    workers: int,
    directory: Path,
    cpus: int = 1,
    gpus: float = 0,
    retries: int = 1,
    halving: Halving[Item] | None = None,
) -> list[Item]:
    """Train every item, up to ``workers`` at a time.

    Needs a running Ray, as inside `octnas.cluster.start.ray_cluster`.

    Args:
        train: pickled into Ray's object store once; reports numbers after every epoch, ``epoch``
            among them. It resumes an interrupted attempt.
        items: its arguments.
        on_report: called in this process with each report.
        workers: trainings at a time.
        directory: for temporary files of Tune.
        cpus, gpus: of each training; a fraction shares a GPU.
        retries: how often a training is started again after an exception or its worker's death.
            Those lost with a node are also started again after all others.
        halving: which trainings are stopped early; None for none.

    Returns:
        The items whose trainings were stopped.

    Raises:
        ClusterError: a training failed repeatedly; the others have ended.
    """
    noted = _Noted(items, on_report)
    schedule = _All(noted) if halving is None else _Behind(noted, halving)
    left = list(range(len(items)))
    with tune_files(directory) as storage, handler_kept(SIGUSR1) as keep_signals:
        for _ in range(1 + _MOST_LOST):
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_train, train=train, items=tuple(items)),
                    {"cpu": cpus, "gpu": gpus},
                ),
                param_space={_INDEX: tune.grid_search(left)},
                tune_config=tune.TuneConfig(
                    scheduler=schedule,
                    max_concurrent_trials=workers,
                    reuse_actors=True,  # a new process would import torch again
                    trial_dirname_creator=short_name,
                ),
                run_config=run_config(storage, retries),
            )
            keep_signals()
            tuner.fit()
            left = sorted(noted.lost)
            if not left:
                break
    if noted.failed:
        first = next(iter(noted.failed.values()))
        raise ClusterError(
            f"{len(noted.failed)} of {len(items)} trainings failed; the first: {first}; what is "
            "finished is kept, and the same command resumes the rest"
        )
    return [items[index] for index in sorted(noted.stopped)]


def _train(
    config: Mapping[str, Any], *, train: Callable[[Any, Report], None], items: Sequence[Any]
) -> None:
    """One trial."""
    try:
        train(items[config[_INDEX]], lambda row: tune.report(dict(row)))
    except Exception as error:  # noqa: BLE001 - the reason of a failed trial
        raise EvaluationError(one_line(error)) from None


@dataclass
class _Noted:
    """Reports and failures of trials, by index of their items."""

    items: Sequence[Any]
    on_report: OnReport
    stopped: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)  # reasons
    lost: set[int] = field(default_factory=set)  # failed with their node

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its settings, and ``on_report`` may hold a progress bar."""
        return {}

    def report(self, trial: Trial, result: Mapping[str, Any]) -> None:
        numbers = {name: result[name] for name in result if isinstance(result[name], float | int)}
        self.on_report(self.items[index_of(trial)], numbers)

    def failure(self, trial: Trial) -> None:
        """Tune reports every failure, also those after which it starts a training again."""
        self.recovered(trial)
        self.failed[index_of(trial)] = reason_of(trial)
        if node_lost(trial):
            self.lost.add(index_of(trial))

    def recovered(self, trial: Trial) -> None:
        """A training that had failed has ended."""
        self.failed.pop(index_of(trial), None)
        self.lost.discard(index_of(trial))


def index_of(trial: Trial) -> int:
    """Which item a trial trains."""
    return int(trial.config[_INDEX])


class _Noting(TrialScheduler):
    """A mixin before a scheduler, which notes the ends of trials."""

    noted: _Noted

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self.noted.recovered(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_error(tune_controller, trial)
        self.noted.failure(trial)


class _All(_Noting, FIFOScheduler):
    """Every training ends."""

    def __init__(self, noted: _Noted) -> None:
        super().__init__()
        self.noted = noted

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.noted.report(trial, result)
        return str(super().on_trial_result(tune_controller, trial, result))


class _Behind(_Noting, ASHAScheduler):
    """ASHA by how far a training is behind those of networks that cost no more."""

    def __init__(self, noted: _Noted, halving: Halving[Any]) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=_MARGIN,
            mode="max",
            max_t=halving.epochs + 1,
            grace_period=halving.grace,
            reduction_factor=halving.reduction,
            stop_last_trials=False,
        )
        self.noted, self._halving = noted, halving
        self._seen: dict[float, dict[int, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.noted.report(trial, result)
        margin = self._margin(index_of(trial), result[EPOCH], result[self._halving.metric])
        action = super().on_trial_result(tune_controller, trial, {**result, _MARGIN: margin})
        stop = action == TrialScheduler.STOP and margin < 0
        if stop and self._halving.may_stop(self.noted.items[index_of(trial)]):
            self.noted.stopped.add(index_of(trial))
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def _margin(self, index: int, epoch: float, value: float) -> float:
        """By how much a training is better than the best of others that cost no more."""
        cost, items = self._halving.cost, self.noted.items
        at_epoch = self._seen.setdefault(epoch, {})
        at_epoch[index] = value
        others = [
            found
            for other, found in at_epoch.items()
            if other != index and cost(items[other]) <= cost(items[index])
        ]
        return value - max(others, default=value)
