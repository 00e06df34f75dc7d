"""Training of the weight-sharing supernet."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from octnas.data.images import Images
from octnas.device import cpu_threads
from octnas.nn.supernet import build_supernet
from octnas.space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.loop import Log, train
from octnas.training.sampled import sampling_steps
from octnas.training.settings import SupernetSettings
from octnas.training.step import Step


def train_supernet(
    space: SearchSpace,
    images: Images,
    settings: SupernetSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
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
        checkpoints: from which the training goes on if it was broken off.
        log: called after every epoch.
        on_step: called with the number of every step, for progress.

    Returns:
        The supernet, on ``device``, and its history per epoch.

    Raises:
        BudgetError: no architecture lies in the range of MACs that is to be sampled.
    """
    supernet = build_supernet(space, seed=seed, by_role=settings.by_role)
    steps = sampling_steps(supernet, space, settings, seed=seed)

    def backward(step: Step) -> Tensor:
        if on_step is not None:
            on_step(step.number)
        return steps(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            images.train_batches(settings.recipe.batch_size, seed),
            settings.recipe,
            device=device,
            seed=seed,
            backward=backward,
            state=steps if isinstance(steps, Stateful) else None,
            checkpoints=checkpoints,
            log=log,
        )
    return supernet, history
