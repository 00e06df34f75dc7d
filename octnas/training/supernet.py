"""Training of the weight-sharing supernet: one sampled architecture per step."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from octnas.data.images import Images
from octnas.device import cpu_threads
from octnas.levels import CostLevels
from octnas.nn.supernet import activate, build_supernet
from octnas.space import SearchSpace
from octnas.training.loop import Log, train
from octnas.training.settings import SupernetSettings


def train_supernet(
    space: SearchSpace,
    images: Images,
    settings: SupernetSettings,
    *,
    seed: int,
    device: torch.device,
    log: Log | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a fresh supernet of a search space.

    Args:
        space: what is sampled from.
        images: trained on their training part.
        settings: sampling and recipe.
        seed: of initialisation, data order and sampling.
        device: where to train.
        log: called after every epoch.
        on_step: called with the number of every step, for progress.

    Returns:
        The supernet, on ``device``, and its history per epoch.
    """
    supernet = build_supernet(space, seed=seed)
    sample = architecture_sampler(space, settings.sampling, seed)

    def before_step(step: int) -> None:
        activate(supernet, sample())
        if on_step is not None:
            on_step(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            images.train_batches(settings.recipe.batch_size, seed),
            settings.recipe,
            device=device,
            before_step=before_step,
            log=log,
        )
    return supernet, history


def architecture_sampler(
    space: SearchSpace, sampling: str, seed: int
) -> Callable[[], dict[str, float]]:
    """A function that draws α by site.

    Args:
        space: what to draw from.
        sampling: ``"by_macs"``: a cost, evenly, then an architecture of that cost, evenly
            (uniform α would crowd a narrow band of cost); ``"uniform"``: every site's α evenly.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    if sampling == "by_macs":
        levels = CostLevels(space)
        return lambda: levels.sample(rng)
    return lambda: {site.name: float(rng.choice(site.choices)) for site in space.sites}
