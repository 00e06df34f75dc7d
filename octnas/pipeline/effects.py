"""How much each site decides, as the search's model of all scores sees it."""

from collections.abc import Mapping, Sequence

import numpy as np

from octnas.front import Candidate
from octnas.report.data import Effect
from octnas.search.surrogate import Features, fit, log_scores
from octnas.space import SearchSpace

_DRAWS = 200
_FEWEST = 10  # candidates of which a model says something
_MOST = 64  # candidates over which an effect is averaged


def effects_of_sites(space: SearchSpace, candidates: Sequence[Candidate]) -> dict[str, Effect]:
    """By searchable site, what going from its smallest α to its largest does to the loss.

    In each of some candidates the site is put to one end and to the other, the rest left as it
    is; the mean of what the model of all scores says of that, in percent of the loss.

    Args:
        space: that was searched.
        candidates: that were evaluated; of fewer than ten nothing is told.
    """
    usable = [one for one in candidates if np.isfinite(one.loss)]
    if len(usable) < _FEWEST:
        return {}
    features = Features(space, pairs=True)
    model = fit(features, log_scores([one.alphas for one in usable], [one.loss for one in usable]))
    step = max(1, len(usable) // _MOST)
    around = [dict(one.alphas) for one in usable[::step]]
    rows = np.array(
        [_difference(features, around, site.name, site.choices) for site in space.searchable]
    )
    rng = np.random.default_rng(0)
    drawn = np.array([rows @ model.draw(rng).weights for _ in range(_DRAWS)])
    means, stds = rows @ model.mean.weights, drawn.std(axis=0)
    return {
        # The model is of logarithms.
        site.name: Effect(100 * float(np.expm1(mean)), 100 * float(np.exp(mean) * std))
        for site, mean, std in zip(space.searchable, means, stds, strict=True)
    }


def _difference(
    features: Features,
    around: Sequence[Mapping[str, float]],
    site: str,
    choices: tuple[float, ...],
) -> np.ndarray:
    """The mean difference of the features between the two ends of a site, shape ``(columns,)``."""
    low = features([{**alphas, site: choices[0]} for alphas in around])
    high = features([{**alphas, site: choices[-1]} for alphas in around])
    mean: np.ndarray = (high - low).mean(axis=0)
    return mean
