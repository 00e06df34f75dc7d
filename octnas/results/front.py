"""Candidates, and the front of the non-dominated ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from octnas.io.files import read_as
from octnas.space.costs import Budget


@dataclass(frozen=True)
class Candidate:
    """An architecture and its measurements.

    Attributes:
        id: of the architecture.
        alphas: α by site.
        macs: for one image.
        loss: cross-entropy on the search_val part, by which candidates are compared.
        metrics: other measurements, such as ``rank_top1`` or ``read_loss``.
        origin: ``"uniform"``, ``"spread"``, ``"learned"`` or the name of the sampler.
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
        """Its MACs, activation or peak memory in bytes, or predicted latency in nanoseconds.

        Args:
            name: ``"macs"``, ``"activation"``, ``"peak"`` or ``"latency"``.

        Raises:
            KeyError: it was not measured.
        """
        if name == "macs":
            return self.macs
        if name in ("activation", "peak"):
            return round(self.metrics[f"{name}_bytes"])
        return round(self.metrics["latency"] * 1e9)

    def value(self, metric: str) -> float:
        """A metric by name; the loss for an empty name."""
        return self.metrics[metric] if metric else self.loss

    def fits(self, budget: Budget) -> bool:
        """Whether it is within all bounds of a budget."""
        return all(bound.admits(self.cost(bound.cost)) for bound in budget.bounds)

    def to_dict(self) -> dict[str, Any]:
        """The candidate as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Candidate":
        """Read what `to_dict` wrote."""
        return read_as(Candidate, document)


@dataclass(frozen=True)
class Front:
    """The non-dominated candidates: none costs less and has a lower loss.

    Attributes:
        candidates: ascending in cost.
        cost: name of the cost, see `Candidate.cost`.
    """

    candidates: tuple[Candidate, ...]
    cost: str = "macs"

    @staticmethod
    def of(candidates: Iterable[Candidate], metric: str = "", cost: str = "macs") -> "Front":
        """The front of some candidates; of equal ones, the one with the smaller id.

        Candidates whose loss is NaN are left out.

        Args:
            candidates: to choose from.
            metric: to minimise besides the cost; empty for the loss.
            cost: see `Candidate.cost`.
        """
        front: list[Candidate] = []
        by_cost = sorted(_scored(candidates), key=lambda c: (c.cost(cost), c.value(metric), c.id))
        for candidate in by_cost:
            if not front or candidate.value(metric) < front[-1].value(metric):
                front.append(candidate)
        return Front(tuple(front), cost)

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Area that the front dominates up to ``reference`` = (cost, loss)."""
        return hypervolume([(one.cost(self.cost), one.loss) for one in self.candidates], reference)


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points (cost, loss) dominate up to a reference.

    Points beyond the reference in either coordinate add nothing.
    """
    cost_end, loss_end = reference
    area = 0.0
    for cost, loss in sorted(points):
        if cost < cost_end and loss < loss_end:
            area += (cost_end - cost) * (loss_end - loss)
            loss_end = loss
    return area


def hypervolume_curve(
    candidates: Iterable[Candidate], reference: tuple[float, float], cost: str = "macs"
) -> Iterator[float]:
    """The hypervolume after each candidate, of all candidates up to it."""
    front = Front((), cost)
    for one in candidates:
        front = Front.of([*front.candidates, one], cost=cost)
        yield front.hypervolume(reference)


def best_under(
    candidates: Sequence[Candidate], budget: Budget, metric: str = ""
) -> Candidate | None:
    """The candidate inside a budget with the lowest metric, by default the loss; None without."""
    inside = [candidate for candidate in _scored(candidates) if candidate.fits(budget)]
    return min(inside, key=lambda c: (c.value(metric), c.macs, c.id), default=None)


def _scored(candidates: Iterable[Candidate]) -> list[Candidate]:
    # NaN compares with nothing, so the first one would stay.
    return [candidate for candidate in candidates if not isnan(candidate.loss)]
