"""Settings of the search, importable without Optuna."""

from dataclasses import dataclass, field
from typing import Literal

from octnas.errors import require, require_at_least
from octnas.settings import HOW, LATER, Executor

Sampler = Literal["surrogate", "nsga2", "tpe", "random", "learned"]
ChooseBy = Literal["expected", "loss"]
Measure = Literal["auto", "loss", "kl"]
MEASURED = {"loss": "loss", "kl": "KL divergence"}
"""What a measure is called."""
Objective = Literal["auto", "macs", "activation", "latency"]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Section ``search``: how candidates are proposed and scored.

    Attributes:
        sampler: ``surrogate`` fits a model to the scores and evaluates its optima; ``nsga2`` and
            ``tpe`` are Optuna's; ``random`` draws uniformly from the architectures inside the
            budgets; ``learned`` draws from the distributions of a supernet with
            ``sampling: learnable``. All start with the modes of such distributions, the uniform-α
            architectures and a design spread over MACs.
        score: weights that candidates are scored with: those of the ``supernet``; or those of
            the trained network that the run begins with, ``converted`` for each candidate without
            any training. ``auto`` is ``converted`` if there is one, unless α is learned.
        measure: what is measured: the ``loss`` (cross-entropy) on labels, or ``kl``, the divergence
            of the candidate's probabilities from the original's, in nats, which needs no labels
            but a trained network that the run begins with. ``auto`` is ``loss``.
        steps: training steps that each candidate takes before it is scored, with converted scores:
            batches of ``images_per_batch`` training images, the same for all candidates, taught by
            the original with the defaults of ``retrain.distillation``. SGD with a momentum of 0.9
            and a learning rate of ``0.01 · images_per_batch / 256``, which falls to 0 as a cosine.
        objective: the cost that the search minimises besides the loss, and the other axis of the
            front. ``auto`` is the first cost that all budgets bound, or MACs if there is none, or
            if it is peak memory.
        screening_fraction: share of the search_val images that a candidate is scored on first; it
            is scored on the rest only if it may still reach the front. 1 scores on all at once.
        choose_by: how to choose a candidate for each budget: by lowest ``loss`` on the search_val
            images, or by lowest ``expected`` loss on other images, which shrinks the measured loss
            towards a model of all candidates.
        trials: number of candidates, including the initial design.
        spread: number of candidates in the design spread over MACs.
        batch_size: candidates requested before the first of their results is reported. It decides
            the candidates, whatever the number of workers.
        population: population size of NSGA-II.
        calibration_batches: training batches that re-estimate the batch-norm statistics of each
            candidate.
        images_per_batch: batch size of calibration and scoring.
        threads: CPU threads of one evaluation.
        executor: ``local`` evaluates in this process, ``ray`` through Ray Tune.
        workers: candidates that Ray evaluates at the same time.
        retries: how often to retry a candidate after an error, a loss that is not finite or the
            death of its worker; after that its trial is marked as failed.
        storage: database URL of the Optuna study, such as
            ``postgresql://user:password@host/name``; empty for a journal file in the run
            directory.
    """

    sampler: Sampler = "surrogate"
    score: Literal["auto", "supernet", "converted"] = field(default="auto", metadata=LATER)
    measure: Measure = field(default="auto", metadata=LATER)
    steps: int = field(default=0, metadata=LATER)
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
        share = self.screening_fraction
        require(0 < share <= 1, "screening_fraction", share, "above 0, at most 1")
        counts = ("trials", "batch_size", "calibration_batches", "threads", "workers")
        require_at_least(self, 1, *counts)
        require_at_least(self, 2, "population", "images_per_batch")
        require_at_least(self, 0, "spread", "retries", "steps")
