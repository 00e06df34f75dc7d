"""Networks to retrain, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from statistics import fmean, stdev
from typing import Any

from octnas.architecture import Architecture
from octnas.costs import Cost
from octnas.documents import read_as

SCHEMA = 1

SEARCHED = "searched"
FRONT = "front"
UNIFORM = "uniform"
PAPER = "paper"
GROWING = "growing"
RANDOM = "random"
WORST = "worst"
NARROWER = "narrower"
SHALLOWER = "shallower"
SMALLER_IMAGES = "smaller images"
VANILLA = "vanilla"
ROLES = (
    SEARCHED,
    FRONT,
    UNIFORM,
    PAPER,
    GROWING,
    RANDOM,
    WORST,
    NARROWER,
    SHALLOWER,
    SMALLER_IMAGES,
    VANILLA,
)
PLAIN = (NARROWER, SHALLOWER, SMALLER_IMAGES)
"""Plain networks of the same MACs."""


@dataclass(frozen=True)
class Network:
    """A network to retrain, and why.

    Attributes:
        role: ``"searched"`` (chosen for the budget), ``"front"`` (another one of the front), or the
            control that it is: ``"uniform"`` (one α at every searchable site), ``"paper"`` (the
            same, but 0 in stem and last stage), ``"growing"`` (α growing with depth),
            ``"random"`` (inside the budget), ``"worst"`` (what the supernet finds worst there),
            ``"narrower"``, ``"shallower"``, ``"smaller images"`` (plain networks of the same
            MACs), ``"vanilla"`` (α = 0 everywhere).
        budget: name of the budget that it belongs to; empty for vanilla and the front.
        architecture: what to build.
        cost: for one image.
        number: of several of the same role and budget, counted from 1; 0 where there is one.
    """

    role: str
    budget: str
    architecture: Architecture
    cost: Cost
    number: int = 0

    @property
    def name(self) -> str:
        """Such as ``"searched, uniform α 0.5"``."""
        role = f"{self.role} {self.number}" if self.number else self.role
        return f"{role}, {self.budget}" if self.budget else role

    @property
    def slug(self) -> str:
        """The name as a folder's name: ``"searched-uniform-0.5"``."""
        kept = "".join(
            char if (char.isascii() and char.isalnum()) or char == "." else " "
            for char in self.name
        )
        return "-".join(kept.split())

    def to_dict(self) -> dict[str, Any]:
        """The network as a JSON object."""
        return {
            "role": self.role,
            "budget": self.budget,
            "architecture": self.architecture.to_dict(),
            "cost": asdict(self.cost),
            "number": self.number,
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Network":
        """Read what `to_dict` wrote."""
        found = read_as(Network, document)
        # The name becomes that of a folder.
        if found.role not in ROLES:
            raise ValueError(f"role: found {found.role!r}, allowed: {', '.join(ROLES)}")
        return found


def check_history(rows: Sequence[Mapping[str, float]]) -> None:
    """Refuse a history whose epochs cannot be told apart, or have no loss.

    Raises:
        TypeError, ValueError, LookupError: naming the row.
    """
    for row in rows:
        if not (0 <= row["epoch"] < inf):
            raise ValueError(f"epoch: found {row['epoch']}, allowed: 0 or more")
        read_as(float, row["train_loss"])


@dataclass(frozen=True)
class SeedResult:
    """One training of a network from scratch.

    Attributes:
        seed: of initialisation, data order and augmentation.
        metrics: at the end of training: ``val_top1`` (0 to 1), ``val_loss``, ``seconds`` (of
            training, interruptions left out); for the ground truth of a ranking check
            ``read_top1`` and ``read_loss``.
        history: per epoch: ``epoch``, ``train_loss``, ``lr``, ``time`` (seconds since 1970),
            ``seconds`` (of training until then).
    """

    seed: int
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "metrics": dict(self.metrics),
            "history": [dict(epoch) for epoch in self.history],
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "SeedResult":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: an unknown schema version.
        """
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema: found {document['schema']!r}, allowed: {SCHEMA}")
        check_history(document["history"])
        return read_as(SeedResult, {key: document[key] for key in document if key != "schema"})


@dataclass(frozen=True)
class Retrained:
    """A network with the results of its trainings, one per seed."""

    network: Network
    runs: tuple[SeedResult, ...]

    def values(self, metric: str) -> list[float]:
        """A metric by seed."""
        return [run.metrics[metric] for run in self.runs]

    def mean(self, metric: str) -> float:
        """A metric's mean over seeds."""
        return fmean(self.values(metric))

    def std(self, metric: str) -> float | None:
        """A metric's standard deviation over seeds (n - 1); None with a single seed."""
        return stdev(self.values(metric)) if len(self.runs) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """The network and its results as a JSON object."""
        return {"network": self.network.to_dict(), "runs": [run.to_dict() for run in self.runs]}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Retrained":
        """Read what `to_dict` wrote."""
        return read_as(Retrained, document)
