"""Networks to retrain, their results, and baselines that could be designed by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any

import numpy as np

from octnas.io.files import read_as
from octnas.settings import RENAMED_VALUES, rename_value
from octnas.space.architecture import Architecture
from octnas.space.cost_table import AdditiveCost, Limit
from octnas.space.costs import Bound, Budget, Cost
from octnas.space.peak import PeakCost
from octnas.space.search_space import SearchSpace

SCHEMA = 1

SEARCHED = "searched"
FRONT = "front"
UNIFORM = "uniform"
PAPER = "paper"
INCREASING = "increasing"
RANDOM = "random"
WORST = "worst"
NARROWER = "narrower"
SHALLOWER = "shallower"
SMALLER_IMAGES = "smaller images"
PRUNED = "pruned"
VANILLA = "vanilla"
ORIGINAL = "original"
PLAIN = (NARROWER, SHALLOWER, SMALLER_IMAGES, PRUNED)
"""Networks without octave convolutions, of the same MACs."""
ROLES = (SEARCHED, FRONT, UNIFORM, PAPER, INCREASING, RANDOM, WORST, *PLAIN, VANILLA, ORIGINAL)


@dataclass(frozen=True)
class Network:
    """A network to retrain, and why.

    Attributes:
        role: ``"searched"`` (chosen for the budget), ``"front"`` (another one of the front), or a
            baseline: ``"uniform"`` (one α at every searchable site), ``"paper"`` (the same, but 0
            in stem and last stage), ``"increasing"`` (α increasing with depth), ``"random"``
            (inside the budget), ``"worst"`` (predicted to be the worst inside the budget),
            ``"narrower"``, ``"shallower"``, ``"smaller images"`` (plain networks of the same
            MACs), ``"pruned"`` (what Torch-Pruning leaves of the trained network), ``"vanilla"``
            (α = 0 everywhere). ``"original"`` is the trained network that the run began with, as
            it came.
        budget: name of its budget; empty for vanilla, the original and the front.
        architecture: to build.
        cost: for one image.
        number: counts several of the same role and budget from 1; 0 where there is only one.
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
        role = rename_value(document.get("role"), RENAMED_VALUES["retrain.baselines"])
        found = read_as(Network, {**document, "role": role})
        # The name becomes that of a folder.
        if found.role not in ROLES:
            raise ValueError(f"role: found {found.role!r}, allowed: {', '.join(ROLES)}")
        return found


@dataclass(frozen=True)
class SeedResult:
    """One training of a network from scratch.

    Attributes:
        seed: of initialisation, data order and augmentation.
        metrics: after training: ``val_top1`` (0 to 1), ``val_loss``, ``seconds`` (of training,
            without interruptions); for the ground truth of a ranking check ``read_top1`` and
            ``read_loss``.
        history: per epoch: ``epoch``, ``train_loss``, ``lr``, ``time`` (seconds since 1970),
            ``seconds`` (of training so far).
    """

    seed: int
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "SeedResult":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: an unknown schema version.
        """
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema: found {document['schema']!r}, allowed: {SCHEMA}")
        return read_as(SeedResult, document)


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


# Values tried of a baseline's one or two parameters.
_STEPS = 101


def baseline(
    space: SearchSpace,
    role: str,
    budget: Budget,
    at_least: int,
    cost: AdditiveCost | PeakCost | None = None,
    limits: Sequence[Limit] = (),
) -> Network:
    """A baseline of a budget.

    Args:
        space: the search space; fixed sites keep their α.
        role: ``"uniform"``, ``"paper"``, ``"increasing"`` or ``"vanilla"``.
        budget: that the baseline should cost as much as.
        at_least: cost of the searched network; a smaller baseline would be unfair.
        cost: of the budget's first bound, if not MACs alone; then α is one of its sites' choices.
        limits: the budget's other bounds.

    Returns:
        For ``"vanilla"`` the network at α = 0; otherwise the one of its kind whose cost is
        closest to the budget's and not below ``at_least``. With ``limits`` it is within them, and
        costs less where it must.
    """
    if role == VANILLA:
        return Network(VANILLA, "", space.vanilla, space.cost(space.vanilla))
    if role == UNIFORM and budget.uniform is not None and not limits:
        architecture = space.uniform(budget.uniform)
    elif cost is not None:
        architecture = _closest_of(cost, _DESIGNS[role](space), budget.first, at_least, limits)
    else:
        architecture = _closest(space, _DESIGNS[role](space), budget, at_least)
    return Network(role, budget.name, architecture, space.cost(architecture))


def searched(space: SearchSpace, budget: Budget, architecture: Architecture) -> Network:
    """The network that the search chose for a budget."""
    return Network(SEARCHED, budget.name, architecture, space.cost(architecture))


def _closest(
    space: SearchSpace, designs: np.ndarray, budget: Budget, at_least: int
) -> Architecture:
    """The design, of shape ``(n, len(searchable))``, closest to the budget and large enough."""
    names = [site.name for site in space.searchable]
    quantized = np.array(
        [list(space.quantize(dict(zip(names, row, strict=True))).values()) for row in designs]
    )
    macs = space.macs(quantized)
    distance = np.where(macs >= at_least, np.abs(macs - budget.max_macs), np.iinfo(np.int64).max)
    best = quantized[int(distance.argmin())]
    return space.architecture(dict(zip(space.site, map(float, best), strict=True)))


def _closest_of(
    cost: AdditiveCost | PeakCost,
    designs: np.ndarray,
    bound: Bound,
    at_least: int,
    limits: Sequence[Limit],
) -> Architecture:
    """As `_closest`, with each α moved to the nearest choice of its site in the cost's space.

    If all designs within the limits cost less than ``at_least``, the largest of them.
    """
    space = cost.space
    found = [
        {
            site.name: _nearest(site.choices, float(want))
            for site, want in zip(space.searchable, row, strict=True)
        }
        for row in designs
    ]
    costs = np.array([cost.of(alphas) for alphas in found])
    # How far beyond its limits a design is; only where every design is beyond one, above 0.
    over = np.array([_over(limits, alphas) for alphas in found])
    large = (over <= 0) & (costs >= at_least)
    if large.any():
        best = np.where(large, np.abs(costs - bound.upper), np.iinfo(np.int64).max).argmin()
    else:
        best = np.where(over <= max(0.0, over.min()), costs, -1).argmax()
    return space.architecture(found[int(best)])


def _over(limits: Sequence[Limit], alphas: Mapping[str, float]) -> float:
    return max(((cost.of(alphas) - most) / cost.vanilla for cost, most in limits), default=0.0)


def _uniform_designs(space: SearchSpace) -> np.ndarray:
    return np.repeat(np.linspace(0, 1, _STEPS)[:, None], len(space.searchable), axis=1)


def _paper_designs(space: SearchSpace) -> np.ndarray:
    """One α, except for stem and last stage at 0 (arXiv 1904.05049, §4.1)."""
    stages = [site.name.partition(".")[0] for site in space.searchable]
    last = space.sites[-1].name.partition(".")[0]
    free = np.array([not stage.startswith("stem") and stage != last for stage in stages])
    designs: np.ndarray = _uniform_designs(space) * free
    return designs


def _increasing_designs(space: SearchSpace) -> np.ndarray:
    """α increases linearly from 0 at one depth to one of the choices at another.

    All depths and choices are tried; each α is moved to the nearest choice of its site.
    """
    depth = np.array([site.depth for site in space.searchable])
    designs = []
    for start, top in product(np.linspace(0, 1, _STEPS // 4, endpoint=False), space.alphas[1:]):
        for end in np.linspace(start, 2, _STEPS // 2)[1:]:
            ramp = top * np.clip((depth - start) / (end - start), 0, 1)
            wanted = zip(space.searchable, ramp, strict=True)
            designs.append([_nearest(site.choices, float(want)) for site, want in wanted])
    return np.unique(np.array(designs), axis=0)


def _nearest(choices: tuple[float, ...], want: float) -> float:
    return min(choices, key=lambda choice: abs(choice - want))


_DESIGNS = {UNIFORM: _uniform_designs, PAPER: _paper_designs, INCREASING: _increasing_designs}
