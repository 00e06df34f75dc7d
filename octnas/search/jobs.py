"""What a search hands out to be evaluated, and what it takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
