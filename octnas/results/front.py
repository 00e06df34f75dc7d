"""Candidates, and the front of those that no other candidate beats."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from octnas.io.files import read_as
from octnas.space.costs import Budget


@dataclass(frozen=True)
class Candidate:
    """An architecture with what was measured of it.

    Attributes:
        id: of the architecture.
        alphas: α by site.
        macs: its cost for one image.
        loss: cross-entropy on search_val, by which candidates are compared.
        metrics: whatever else was measured, such as ``rank_top1`` or ``read_loss``.
        origin: where it came from: ``"uniform"``, ``"spread"``, ``"learned"`` or the
            sampler's name.
        trial: number of the Optuna trial.
    """

    id: str
    alphas: Mapping[str, float]
    macs: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""
    trial: int = -1

    def cost(self, name: str) -> int:
        """Its MACs, its activation memory in bytes or its predicted latency in nanoseconds.

        Args:
            name: ``"macs"``, ``"activation"`` or ``"latency"``.

        Raises:
            KeyError: it is not known of this candidate.
        """
        if name == "macs":
            return self.macs
        if name == "activation":
            return round(self.metrics["activation_bytes"])
        return round(self.metrics["latency"] * 1e9)

    def value(self, metric: str) -> float:
        """A metric by name; the loss where there is no name."""
        return self.metrics[metric] if metric else self.loss

    def fits(self, budget: Budget) -> bool:
        """Whether the cost that the budget is about lies inside."""
        if budget.bound is None:
            return budget.admits(self.macs)
        return budget.bound.admits(self.cost(budget.bound.cost))

    def to_dict(self) -> dict[str, Any]:
        """The candidate as a JSON object."""
        return {
            "id": self.id,
            "alphas": dict(self.alphas),
            "macs": self.macs,
            "loss": self.loss,
            "metrics": dict(self.metrics),
            "origin": self.origin,
            "trial": self.trial,
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Candidate":
        """Read what `to_dict` wrote."""
        return read_as(Candidate, document)


@dataclass(frozen=True)
class Front:
    """The non-dominated candidates: none costs less and has a lower loss.

    Attributes:
        candidates: ascending in what they cost.
        cost: which cost, see `Candidate.cost`.
    """

    candidates: tuple[Candidate, ...]
    cost: str = "macs"

    @staticmethod
    def of(candidates: Iterable[Candidate], metric: str = "", cost: str = "macs") -> "Front":
        """The front of any candidates; of equals, the one with the smaller id stays.

        A loss that is not a number is never on it.

        Args:
            candidates: to choose from.
            metric: that stands for the loss; empty for the loss itself.
            cost: that none of fewer may beat, see `Candidate.cost`.
        """
        front: list[Candidate] = []
        by_cost = sorted(_scored(candidates), key=lambda c: (c.cost(cost), c.value(metric), c.id))
        for candidate in by_cost:
            if not front or candidate.value(metric) < front[-1].value(metric):
                front.append(candidate)
        return Front(tuple(front), cost)

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Area that the front dominates up to ``reference`` = (cost, loss).

        Candidates beyond the reference in either coordinate add nothing.
        """
        cost_end, loss_end = reference
        area = 0.0
        for candidate in self.candidates:
            cost = candidate.cost(self.cost)
            if cost < cost_end and candidate.loss < loss_end:
                area += (cost_end - cost) * (loss_end - candidate.loss)
                loss_end = candidate.loss
        return area


def hypervolume_curve(
    candidates: Iterable[Candidate], reference: tuple[float, float], cost: str = "macs"
) -> Iterator[float]:
    """The hypervolume of all until then, after each of the candidates.

    Args:
        candidates: as they were evaluated.
        reference: see `Front.hypervolume`.
        cost: see `Front`.
    """
    front = Front((), cost)
    for one in candidates:
        front = Front.of([*front.candidates, one], cost=cost)
        yield front.hypervolume(reference)


def best_under(
    candidates: Sequence[Candidate], budget: Budget, metric: str = ""
) -> Candidate | None:
    """The best candidate inside a budget; None if none is inside.

    Args:
        candidates: to choose from.
        budget: that it has to fit.
        metric: that is lowest of it; empty for the loss.
    """
    inside = [candidate for candidate in _scored(candidates) if candidate.fits(budget)]
    return min(inside, key=lambda c: (c.value(metric), c.macs, c.id), default=None)


def _scored(candidates: Iterable[Candidate]) -> list[Candidate]:
    # Nothing compares with a NaN, so that one would stay wherever it comes first.
    return [candidate for candidate in candidates if not isnan(candidate.loss)]
