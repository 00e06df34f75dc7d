"""The settings of the search, without Optuna."""

from dataclasses import dataclass, field
from typing import Literal

from octnas.errors import require
from octnas.settings import HOW, LATER, Executor

Sampler = Literal["surrogate", "nsga2", "tpe", "random", "learned"]
ChooseBy = Literal["expected", "loss"]
Objective = Literal["auto", "macs", "activation", "latency"]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How candidates are proposed and scored.

    Attributes:
        sampler: ``surrogate``, which fits a model to the scores and evaluates what that finds
            best; Optuna's ``nsga2`` or ``tpe``; ``random``, evenly among the architectures inside
            the budgets; or ``learned``, which draws from the distributions of a supernet with
            ``sampling: learnable``. All begin with what such a supernet finds most probable, the
            uniform-α architectures and a design spread over MACs.
        objective: what the search makes small besides the loss, and what the front is over:
            ``auto``, what all budgets bound, or MACs where they bound different costs; or by name.
            Samplers are held to the budgets where these bound the objective; to budgets on another
            cost they are held only as far as they leave some MACs out.
        screening_fraction: share of the search_val images that a candidate is scored on first; it
            is scored on the rest only if it may reach the front. 1 for all at once.
        choose_by: what is lowest of the candidate that is chosen for a budget: its ``loss`` on the
            search_val images, or the ``expected`` one on others, shrunk towards a model of all.
        trials: candidates in all, the first designs included.
        spread: size of the design spread over MACs.
        batch_size: candidates that are asked for before the first of them is told; the same on
            any number of workers, so that these give the same candidates.
        population: of NSGA-II.
        calibration_batches: training batches for the batch-norm statistics of a candidate.
        images_per_batch: of these and of scoring.
        threads: CPU threads of one evaluation.
        executor: ``local``, in this process, or ``ray``, through Ray Tune.
        workers: candidates evaluated at a time by Ray.
        retries: how often a candidate is tried again after an error, a loss that is no number, or
            the death of its worker; then it is a failed trial with its reason.
        storage: where the study lives; empty for a journal file in the run directory, or a
            database URL such as ``postgresql://user:password@host/name``.
    """

    sampler: Sampler = "surrogate"
    objective: Objective = field(default="auto", metadata=LATER)
    screening_fraction: float = field(default=1.0, metadata=LATER)
    choose_by: ChooseBy = field(default="expected", metadata=LATER)
    trials: int = 120
    spread: int = 16
    batch_size: int = 8
    population: int = 24
    calibration_batches: int = 2
    images_per_batch: int = 250
    threads: int = 1
    executor: Executor = field(default="local", metadata=HOW)
    workers: int = field(default=2, metadata=HOW)
    retries: int = field(default=1, metadata=HOW)
    storage: str = field(default="", metadata=HOW)

    def __post_init__(self) -> None:
        require(
            0 < self.screening_fraction <= 1,
            "screening_fraction",
            self.screening_fraction,
            "above 0, up to 1",
        )
        for key in ("trials", "batch_size", "calibration_batches", "threads", "workers"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        for key in ("population", "images_per_batch"):
            require(getattr(self, key) >= 2, key, getattr(self, key), "2 or more")
        for key in ("spread", "retries"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
