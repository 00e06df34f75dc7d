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
        sampler: ``surrogate``, which evaluates the best architectures according to a model of the
            scores; Optuna's ``nsga2`` or ``tpe``; ``random``, evenly among the architectures inside
            the budgets; or ``learned``, which draws from the distributions of a supernet with
            ``sampling: learnable``. All begin with the most probable architectures of such a
            supernet, the uniform-α architectures and some spread over MACs.
        objective: the objective beside the loss, and the cost of the front: ``auto``, what all
            budgets bound, or MACs where they bound different costs; or its name. Samplers stay
            within budgets on the objective; budgets on another cost only limit the MACs.
        screening_fraction: share of the search_val images that a candidate is scored on first; it
            is scored on the others only if it may reach the front. 1 for all images at once.
        choose_by: the candidate chosen for a budget has the lowest ``loss`` on the search_val
            images, or the lowest ``expected`` loss on other images, shrunk towards a model of all
            candidates.
        trials: number of candidates, the first ones included.
        spread: number of first candidates spread over MACs.
        batch_size: candidates asked for before the first of them is reported; the result does not
            depend on the number of workers.
        population: of NSGA-II.
        calibration_batches: training batches for the batch-norm statistics of a candidate.
        images_per_batch: for the statistics and for scoring.
        threads: CPU threads of one evaluation.
        executor: ``local``, in this process, or ``ray``, through Ray Tune.
        workers: candidates that Ray evaluates at a time.
        retries: how often a candidate is evaluated again after an error, a loss that is not
            finite, or the death of its worker; then its trial fails, with the reason.
        storage: of the study; empty for a journal file in the run directory, or a database URL such
            as ``postgresql://user:password@host/name``.
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
