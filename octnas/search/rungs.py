"""The first of two rungs: who is scored on a part of the images only.

A candidate whose loss on the first images is so high that it cannot reach the front is not scored
on the others. What decides is the candidates that were told before its batch, so that any number
of workers decides alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from octnas.front import Candidate

FIRST, SHARE = "first_loss", "share"
"""Metrics of a candidate: its loss on the first images, and the share of all that were scored."""

# Wholly scored candidates, of which noise can be told; and how much of it counts as chance.
_FEWEST, _DEVIATIONS = 8, 2.0


@dataclass(frozen=True)
class Rung:
    """What a loss on the first images says of the loss on all of them.

    Attributes:
        offset: by how much it is higher, on average.
        margin: by how much it may be higher by chance.
        whole: cost and loss of the candidates that were scored on all images, ascending in cost.
    """

    offset: float
    margin: float
    whole: tuple[tuple[int, float], ...]

    def limit(self, cost: int) -> float:
        """The highest loss on the first images with which a candidate may reach the front."""
        best = min((loss for other, loss in self.whole if other <= cost), default=inf)
        return best + self.offset + self.margin


def rung_of(told: Sequence[Candidate], cost: Callable[[Candidate], int]) -> Rung | None:
    """The rung after some candidates were told; None after too few."""
    whole = [one for one in told if one.metrics.get(f"rank_{SHARE}") == 1]
    if len(whole) < _FEWEST:
        return None
    higher = np.array([one.metrics[f"rank_{FIRST}"] - one.loss for one in whole])
    margin = _DEVIATIONS * float(higher.std(ddof=1))
    return Rung(float(higher.mean()), margin, tuple(sorted((cost(one), one.loss) for one in whole)))


def expected_loss(outcome: Mapping[str, float], rung: Rung | None) -> float:
    """The loss on all images, as far as the outcome tells it."""
    if rung is None or outcome.get(SHARE, 1) == 1:
        return outcome["loss"]
    return outcome["loss"] - rung.offset
