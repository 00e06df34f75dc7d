"""Whole networks for a latency table: to fit it to, and to hold it against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from octnas.additive import AdditiveCost
from octnas.errors import MeasureError
from octnas.latency import LatencyTable
from octnas.latency_records import MeasuredNetwork, Quality
from octnas.levels import CostLevels
from octnas.measure.settings import LatencySettings
from octnas.rank_correlations import kendall, spearman
from octnas.space import SearchSpace

FIT, CHECK, NARROW = "fit", "check", "narrow"
# Draws for each network that is wanted, until it is given up in a space that holds few.
_DRAWS = 20
# Networks from which on single sites can be told apart; and how much is held against a site's time,
# for each network.
_FEWEST, _PENALTIES = 10, np.geomspace(0.01, 100, 9)


def draw_networks(
    cost: AdditiveCost, settings: LatencySettings, seed: int = 0
) -> list[tuple[str, dict[str, float]]]:
    """Networks with what they are for; none is drawn twice.

    Args:
        cost: over whose range they are spread.
        settings: how many for ``fit`` and ``check``, over the whole range, and ``narrow``, in its
            middle; fewer where the space holds no others.
        seed: of the draws.
    """
    counts = {NARROW: settings.narrow, FIT: settings.fit, CHECK: settings.networks}
    width = settings.width
    levels, rng = CostLevels(cost.space, cost=cost), np.random.default_rng(seed)
    middle = (levels.cheapest + levels.dearest) / 2
    ends = {
        NARROW: (int(middle * (1 - width / 2)), int(middle * (1 + width / 2))),
        FIT: (levels.cheapest, levels.dearest),
        CHECK: (levels.cheapest, levels.dearest),
    }
    found: dict[tuple[float, ...], tuple[str, dict[str, float]]] = {}
    for use, (low, high) in ends.items():
        if levels.count(low, high) == 0:
            continue
        edges = np.linspace(low, high, counts[use] + 1)
        for start, end in pairwise(edges):
            inside = (int(np.ceil(start)), int(end))
            if use == NARROW or levels.count(*inside) == 0:
                inside = (low, high)
            for _ in range(_DRAWS):
                alphas = levels.sample(rng, *inside)
                if tuple(alphas.values()) not in found:
                    found[tuple(alphas.values())] = (use, alphas)
                    break
    return list(found.values())


def as_networks(
    drawn: Sequence[tuple[str, Mapping[str, float]]],
    keys: Sequence[str],
    seconds: Callable[[str], Mapping[str, float]],
) -> list[MeasuredNetwork]:
    """Networks with their times.

    Args:
        drawn: what they are for, and α by site.
        keys: of each.
        seconds: by key, for ``"ratio"`` (all rounds), ``"even"`` and ``"odd"``.
    """
    both, even, odd = (seconds(which) for which in ("ratio", "even", "odd"))
    return [
        MeasuredNetwork(use, dict(alphas), both[key], even[key], odd[key])
        for (use, alphas), key in zip(drawn, keys, strict=True)
    ]


def fit_table(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> LatencyTable:
    """The table fitted to some networks, and its quality on the others.

    Args:
        table: of layers by themselves, with constant 0 and factor 1.
        space: of the networks.
        networks: measured as a whole; those for ``fit`` are not among those of the quality.

    Raises:
        MeasureError: fewer than two networks to fit to, or networks that take no longer the longer
            their layers do.
    """
    fitting = [one for one in networks if one.use == FIT]
    if len(fitting) < 2:
        raise MeasureError(f"found {len(fitting)} networks to fit a latency table to, allowed: 2")
    cost = table.cost(space)
    sums = np.array([cost.of(one.alphas) * 1e-9 for one in fitting])
    seconds = np.array([one.seconds for one in fitting])
    rows = np.stack([np.ones(len(fitting)), sums], axis=1)
    # Relative errors count, in a small network as in a large one.
    constant, factor = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(fitting)))[0]
    if not factor > 0:
        raise MeasureError(
            f"networks take no longer the longer their layers do (factor {factor:.3g}): the "
            "machine is too noisy; raise --repeats, or measure when nothing else runs"
        )
    left = seconds - rows @ [constant, factor]
    fitted = replace(
        table,
        constant=float(constant),
        factor=float(factor),
        sites=_sites(space, fitting, seconds, left),
    )
    return replace(fitted, quality=qualities(fitted, space, networks), networks=tuple(networks))


def _sites(
    space: SearchSpace, networks: Sequence[MeasuredNetwork], seconds: np.ndarray, left: np.ndarray
) -> dict[str, dict[float, float]]:
    """Times by site and α that explain what the layers leave, as far as it comes again.

    A ridge regression on relative errors, its penalty chosen by leaving out one network at a time;
    with the strongest one nearly nothing is explained.

    Args:
        space: of the networks.
        networks: that were measured.
        seconds: of each.
        left: of them, what the layers do not explain.
    """
    from sklearn.linear_model import RidgeCV

    if len(networks) < _FEWEST:
        return {}
    places = [(site.name, alpha) for site in space.searchable for alpha in site.choices]
    there = np.array([[one.alphas[name] == alpha for name, alpha in places] for one in networks])
    scale = float(seconds.mean())
    model = RidgeCV(alphas=_PENALTIES * len(networks), fit_intercept=False)
    model.fit(there * (scale / seconds)[:, None], left / seconds)
    found: dict[str, dict[float, float]] = {}
    for (name, alpha), value in zip(places, model.coef_, strict=True):
        found.setdefault(name, {})[alpha] = float(value) * scale
    return found


def qualities(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> dict[str, Quality]:
    """How well a table predicts networks that it was not fitted to.

    All of them; those that are spread over the range alone; and those of the narrow slice.
    """
    cost = table.cost(space)
    others = [one for one in networks if one.use != FIT]
    groups = {"all": others}
    groups["spread"] = [one for one in others if one.use == CHECK]
    groups[NARROW] = [one for one in others if one.use == NARROW]
    return {name: _quality(cost, group) for name, group in groups.items() if group}


def _quality(cost: AdditiveCost, networks: Sequence[MeasuredNetwork]) -> Quality:
    predicted = np.array([cost.of(one.alphas) * 1e-9 for one in networks])
    seconds, even, odd = (
        np.array([getattr(one, key) for one in networks]) for key in ("seconds", "even", "odd")
    )
    errors = np.abs(predicted / seconds - 1)
    return Quality(
        networks=len(networks),
        error=float(np.median(errors)),
        worst=float(errors.max()),
        tau=_defined(kendall(predicted, seconds)),
        rho=_defined(spearman(predicted, seconds)),
        ceiling=_defined(kendall(even, odd)),
        width=float(predicted.max() / predicted.min() - 1),
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
