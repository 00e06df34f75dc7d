"""Independent distributions over the α of every site: expected cost, draws, mode."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

import numpy as np

from octnas.io.files import read_as
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget, ConvShape, conv_macs
from octnas.space.optimum import Scores, best_within
from octnas.space.search_space import SearchSpace

Probabilities = Mapping[str, tuple[float, ...]]
"""By site, one for each of its choices; sites with a single choice may be omitted."""

_TRIES = 1000  # draws outside the budget before the most probable architecture is taken
_STEEPEST = 200.0


@dataclass(frozen=True)
class Distribution:
    """The distribution learned for one budget.

    Attributes:
        expected_macs: of an architecture drawn from them.
        alphas: by site, of the most probable architecture inside the budget.
        macs: of that architecture.
    """

    budget: str
    probabilities: Probabilities
    expected_macs: float
    alphas: Mapping[str, float]
    macs: int

    @staticmethod
    def of(levels: CostLevels, budget: Budget, probabilities: Probabilities) -> "Distribution":
        """The distribution with the values that follow from its probabilities.

        Raises:
            BudgetError: no architecture fits the budget.
        """
        alphas = most_probable(levels, probabilities, budget)
        return Distribution(
            budget.name,
            {name: tuple(map(float, shares)) for name, shares in probabilities.items()},
            float(expected_macs(levels.space, probabilities)),
            alphas,
            levels.space.cost(alphas).macs,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Distribution":
        """Read what `to_dict` wrote."""
        return read_as(Distribution, document)


def expected_macs(space: SearchSpace, probabilities: Mapping[str, Any]) -> Any:
    """Expected MACs of an architecture whose sites are drawn independently, exactly.

    The cost of a convolution is linear in the α of either end (paper, §3.3), so that means
    suffice; where one site is both ends, the costs of its choices are averaged instead.

    Args:
        space: the search space.
        probabilities: by site, those of its choices along the first axis: floats, numpy arrays or
            tensors, through which gradients pass.

    Returns:
        A number, or an array of the probabilities' further axes.
    """
    shares = {site.name: probabilities.get(site.name, (1.0,)) for site in space.sites}
    means = {
        site.name: _mean(shares[site.name], site.choices, lambda choice: choice)
        for site in space.sites
    }

    def expected(conv: ConvShape) -> Any:
        if conv.site_in == conv.site_out:
            choices = space.site[conv.site_out].choices
            return _mean(shares[conv.site_out], choices, lambda a: conv_macs(conv, a, a))
        # Without a site, the input's α does not matter.
        return conv_macs(conv, means[conv.site_in or conv.site_out], means[conv.site_out])

    return sum((expected(conv) for conv in space.convs), start=0.0) + space.other_macs


def _mean(shares: Any, choices: Sequence[float], value: Any) -> Any:
    pairs = zip(shares, choices, strict=True)
    return sum((share * value(choice) for share, choice in pairs), start=0.0)


def tilted(space: SearchSpace, macs: float) -> dict[str, tuple[float, ...]]:
    """Probabilities proportional to exp(s·α), with s such that the expected MACs are as given.

    MACs out of reach are clipped.
    """
    low, high = -_STEEPEST, _STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        above = expected_macs(space, _tilt(space, middle)) > macs
        low, high = (middle, high) if above else (low, middle)
    return _tilt(space, high)


def _tilt(space: SearchSpace, slope: float) -> dict[str, tuple[float, ...]]:
    found = {}
    for site in space.sites:
        largest = max(slope * choice for choice in site.choices)
        weights = [exp(slope * choice - largest) for choice in site.choices]
        found[site.name] = tuple(weight / sum(weights) for weight in weights)
    return found


def most_probable(
    levels: CostLevels, probabilities: Probabilities, budget: Budget
) -> dict[str, float]:
    """The most probable architecture inside a budget; exact if the levels are.

    Raises:
        BudgetError: no architecture fits the budget.
    """
    scores: Scores = {
        (site.name,): np.array([_log(share) for share in probabilities.get(site.name, (1.0,))])
        for site in levels.space.sites
    }
    first = likeliest(levels.space, probabilities)
    if budget.admits(levels.space.cost(first).macs):
        return first
    return best_within(levels, scores, budget.min_macs, budget.max_macs)


def likeliest(space: SearchSpace, probabilities: Probabilities) -> dict[str, float]:
    """The most probable architecture of all, which may exceed the budget."""
    return {
        site.name: site.choices[int(np.argmax(probabilities.get(site.name, (1.0,))))]
        for site in space.sites
    }


def _log(share: float) -> float:
    # Finite, so that architectures with impossible choices can be compared if no others fit.
    return log(share) if share > 0 else -1e6


def draw(
    space: SearchSpace, probabilities: Probabilities, rng: np.random.Generator
) -> dict[str, float]:
    """An architecture with each site drawn independently: α by site."""
    return {
        site.name: site.choices[_choose(probabilities.get(site.name, (1.0,)), rng)]
        for site in space.sites
    }


def _choose(shares: Sequence[float], rng: np.random.Generator) -> int:
    # Rounded shares do not sum to exactly one.
    ends = np.cumsum(shares)
    return min(int(np.searchsorted(ends, rng.uniform(0, ends[-1]), "right")), len(ends) - 1)


def draw_within(
    space: SearchSpace, distribution: Distribution, budget: Budget, rng: np.random.Generator
) -> dict[str, float]:
    """Draw an architecture that fits the budget, or after many misses take the most probable."""
    for _ in range(_TRIES):
        alphas = draw(space, distribution.probabilities, rng)
        if budget.admits(space.cost(alphas).macs):
            return alphas
    return dict(distribution.alphas)
