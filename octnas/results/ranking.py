"""How well scores rank architectures: rank correlations with stand-alone trainings.

A rank correlation alone says nothing: MACs alone rank architectures with a τ of about 0.5, and
a ground truth of a few seeds does not even agree with itself. So every figure comes with the τ of
MACs, the τ with MACs partialled out, and the noise ceiling. The ceiling compares halves of the
seeds, while a score is compared with all of them, so a perfect score would be somewhat above it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isnan, sqrt
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from octnas.io.files import read_as
from octnas.space.costs import Budget

Values = np.ndarray[Any, np.dtype[np.float64]]

SCHEMA = 1
CONFIDENCE = 0.95
_TAILS = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))
# Architectures that an interval needs; with four, 95 % intervals cover the truth in 70 %.
_FEWEST = 6
# Digits of a mean; those beyond depend on the order of the seeds.
_DIGITS = 12


def kendall(a: Values, b: Values) -> float:
    """Kendall's τ-b; NaN if one side is constant or contains NaN.

    Computed as the cosine between the signs of all pairwise differences (Daniels, Biometrika 33,
    1944): ten times as fast as scipy, and exactly ±1 if two rankings agree.
    """
    x, y = _signs(a), _signs(b)
    norm = sqrt(np.vdot(x, x) * np.vdot(y, y))
    return float(np.vdot(x, y)) / norm if norm > 0 else float("nan")


def _signs(a: Values) -> Values:
    """Whether each is above (1) or below (-1) each other one, ``(n, n)``."""
    above = (a[:, None] > a).astype(np.float64)
    return above - above.T + (np.nan if np.isnan(a).any() else 0.0)


def spearman(a: Values, b: Values) -> float:
    """Spearman's ρ; NaN if one side is constant or contains NaN."""
    if any((side == side[0]).all() for side in (a, b)):
        return float("nan")
    return float(spearmanr(a, b).statistic)


def partial_kendall(a: Values, b: Values, given: Values) -> float:
    """Kendall's partial τ of two rankings, controlling for a third.

    NaN if the third agrees with one of the two. Kendall, "Partial rank correlation", Biometrika 32
    (1942).
    """
    ab, ag, bg = kendall(a, b), kendall(a, given), kendall(b, given)
    rest = (1 - ag**2) * (1 - bg**2)
    return (ab - ag * bg) / sqrt(rest) if rest > 0 else float("nan")


def noise_ceiling(truth: Values, given: Values | None = None) -> float:
    """τ between the means of two disjoint halves of the seeds, averaged over all such halves.

    Args:
        truth: ``(architectures, seeds)``; of an odd number one half has one more.
        given: for the partial τ, the ranking to control for.

    Returns:
        NaN for a single seed.
    """
    seeds = range(truth.shape[1])
    halves = [set(half) for half in combinations(seeds, len(seeds) // 2) if half]
    pairs = [
        (mean_of_seeds(truth, half), mean_of_seeds(truth, set(seeds) - half)) for half in halves
    ]
    found = [kendall(*p) if given is None else partial_kendall(*p, given) for p in pairs]
    return float(np.mean(found)) if found else float("nan")


def mean_of_seeds(truth: Values, seeds: Collection[int]) -> Values:
    """Mean accuracy by architecture, shape of the truth ``(architectures, seeds)``."""
    # Accuracies are counts of images: rounding errors must not break ties.
    mean: Values = truth[:, sorted(seeds)].mean(axis=1).round(_DIGITS)
    return mean


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval (percentiles, 95 %).

    None if undefined; the ends also with fewer than six architectures, which are too few to
    resample.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranked:
    """An architecture with its score and its ground truth.

    Attributes:
        id: of the architecture.
        alphas: α by site.
        macs: for one image.
        narrow: whether it is in the slice of nearly equal MACs.
        loss, top1: the score.
        truth: top-1 accuracy (0 to 1) of its stand-alone trainings, by seed.
        trained_losses: their losses, by seed; empty in files of earlier versions.
    """

    id: str
    alphas: Mapping[str, float]
    macs: int
    narrow: bool
    loss: float
    top1: float
    truth: tuple[float, ...]
    trained_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Regret:
    """The loss in accuracy from choosing by score inside a budget.

    Attributes:
        budget: its name.
        architectures: number of architectures with a ground truth that the budget admits.
        points: the best mean accuracy among them minus that of the best-scored one, in percent.
        std: of a training over seeds, in percent, pooled over the architectures; None with a
            single seed.
        low, high: ends of the bootstrap interval of ``points``; None as in `Interval`.
    """

    budget: str
    architectures: int
    points: float
    std: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Ranking:
    """How well a score ranks architectures.

    Attributes:
        architectures: all that have a ground truth.
        statistics: by name, see `statistics`.
        regrets: one for each budget that admits at least two of the architectures.
        seconds: durations: ``score`` (training of the scorer), ``scoring``, ``truth`` (all
            trainings).
        epochs: of one training of the ground truth.
        tuned: whether the ground truth was fine-tuned from the original, not trained from scratch.
    """

    architectures: tuple[Ranked, ...]
    statistics: Mapping[str, Interval]
    regrets: tuple[Regret, ...]
    seconds: Mapping[str, float]
    epochs: int
    tuned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The ranking as a JSON document with a schema version."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Ranking":
        """Read what `to_dict` wrote."""
        return read_as(Ranking, document)


def statistics(
    ranked: Sequence[Ranked], *, resamples: int, seed: int = 0
) -> Mapping[str, Interval]:
    """All figures, with bootstrap intervals over architectures.

    Returns:
        By name: ``tau_loss``, ``tau_top1``, ``rho_loss``, ``rho_top1`` (of the score with the mean
        of the ground truth; a good score has positive ones), ``tau_macs`` (MACs alone), ``gain``
        (``tau_loss`` less ``tau_macs``), ``partial_loss``, ``partial_top1`` (MACs partialled out),
        ``ceiling``, ``partial_ceiling`` (of the ground truth with itself); ``trained_loss`` and
        ``trained_loss_ceiling``, the same with losses in place of accuracies, which are finer; and
        inside the slice of nearly equal MACs ``slice_loss``, ``slice_top1``, ``slice_ceiling``,
        ``slice_trained_loss``, ``slice_trained_loss_ceiling`` (τ) and ``slice_rho_loss``,
        ``slice_rho_top1``.
    """
    rng = np.random.default_rng(seed)
    narrow = [entry for entry in ranked if entry.narrow]
    found = _bootstrap(_overall, ranked, rng, resamples)
    if len(narrow) > 1:
        found |= _bootstrap(_inside, narrow, rng, resamples)
    return found


def regrets(
    ranked: Sequence[Ranked], budgets: Sequence[Budget], *, resamples: int = 0, seed: int = 0
) -> tuple[Regret, ...]:
    """The regret of choosing by loss, for each budget that admits at least two architectures.

    Mean accuracies are noisy, so even the truly best architecture may have some regret. Intervals
    are bootstrapped as in `statistics`.
    """
    found: list[Regret] = []
    rng = np.random.default_rng(seed)
    spread = np.array([np.var(entry.truth, ddof=1) for entry in ranked if len(entry.truth) > 1])
    std = 100 * float(np.sqrt(spread.mean())) if len(spread) else None
    for budget in budgets:
        if not budget.macs_alone:
            # The other cost of these architectures is unknown.
            continue
        inside = [entry for entry in ranked if budget.admits(entry.macs)]
        if len(inside) > 1:
            times = resamples if len(inside) >= _FEWEST else 0
            rows = (rng.integers(len(inside), size=len(inside)) for _ in range(times))
            drawn = [_missed([inside[row] for row in some]) for some in rows]
            ends = np.percentile(drawn, _TAILS).tolist() if drawn else (None, None)
            found.append(Regret(budget.name, len(inside), _missed(inside), std, *ends))
    return tuple(found)


def _missed(inside: Sequence[Ranked]) -> float:
    """By how many points choosing by loss misses the best one."""
    pick = min(inside, key=lambda one: (isnan(one.loss), one.loss, one.id))
    best = max(float(np.mean(entry.truth)) for entry in inside)
    return 100 * (best - float(np.mean(pick.truth)))


@dataclass(frozen=True)
class _Table:
    """The columns of some architectures; higher is better."""

    loss: Values
    top1: Values
    macs: Values
    truth: Values
    trained: Values  # -losses, shape of the truth, or without columns

    @property
    def mean(self) -> Values:
        return mean_of_seeds(self.truth, set(range(self.truth.shape[1])))

    def of_losses(self, prefix: str) -> dict[str, float]:
        """τ with the trained losses, and its ceiling; empty where these are unknown."""
        if not self.trained.shape[1]:
            return {}
        mean = mean_of_seeds(self.trained, set(range(self.trained.shape[1])))
        return {
            f"{prefix}trained_loss": kendall(self.loss, mean),
            f"{prefix}trained_loss_ceiling": noise_ceiling(self.trained),
        }

    @staticmethod
    def of(ranked: Sequence[Ranked]) -> "_Table":
        columns = [(-e.loss, e.top1, float(e.macs)) for e in ranked]
        loss, top1, macs = np.array(columns).T
        trained = -np.array([e.trained_losses for e in ranked])
        return _Table(loss, top1, macs, np.array([e.truth for e in ranked]), trained)

    def take(self, rows: np.ndarray[Any, Any]) -> "_Table":
        columns = (self.loss, self.top1, self.macs, self.truth, self.trained)
        return _Table(*(column[rows] for column in columns))


def _overall(table: _Table) -> dict[str, float]:
    mean, macs = table.mean, table.macs
    tau_loss, tau_macs = kendall(table.loss, mean), kendall(macs, mean)
    return {
        "tau_loss": tau_loss,
        "tau_top1": kendall(table.top1, mean),
        "rho_loss": spearman(table.loss, mean),
        "rho_top1": spearman(table.top1, mean),
        "tau_macs": tau_macs,
        "gain": tau_loss - tau_macs,
        "partial_loss": partial_kendall(table.loss, mean, macs),
        "partial_top1": partial_kendall(table.top1, mean, macs),
        "ceiling": noise_ceiling(table.truth),
        "partial_ceiling": noise_ceiling(table.truth, macs),
        **table.of_losses(""),
    }


def _inside(table: _Table) -> dict[str, float]:
    mean = table.mean
    return {
        "slice_loss": kendall(table.loss, mean),
        "slice_top1": kendall(table.top1, mean),
        "slice_ceiling": noise_ceiling(table.truth),
        "slice_rho_loss": spearman(table.loss, mean),
        "slice_rho_top1": spearman(table.top1, mean),
        **table.of_losses("slice_"),
    }


def _bootstrap(
    figures: Callable[[_Table], dict[str, float]],
    ranked: Sequence[Ranked],
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Interval]:
    table = _Table.of(ranked)
    value = figures(table)
    # A resample of a single architecture has no ranking.
    times = resamples if len(ranked) >= _FEWEST else 0
    rows = (rng.integers(len(ranked), size=len(ranked)) for _ in range(times))
    drawn = [figures(table.take(row)) for row in rows if len(set(row)) > 1]
    found = {}
    for name in value:
        several = np.array([figure[name] for figure in drawn])
        several = several[np.isfinite(several)]
        ends = np.percentile(several, _TAILS) if len(several) else (np.nan, np.nan)
        found[name] = Interval(*(_defined(float(one)) for one in (value[name], *ends)))
    return found


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
