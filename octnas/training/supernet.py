"""Training of the weight-sharing supernet."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from octnas.costs import Budget
from octnas.data.images import Images
from octnas.device import cpu_threads
from octnas.distribution import Probabilities
from octnas.nn.supernet import build_supernet
from octnas.space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.learnable import LearnableSteps
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
    budgets: Sequence[Budget] = (),
    on_learned: Callable[[Mapping[str, Probabilities]], None] | None = None,
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
        budgets: with ``sampling: learnable``, for each of which a distribution is learned.
        on_learned: called at the end with their probabilities, by the budgets' names.

    Returns:
        The supernet, on ``device``, and its history per epoch.

    Raises:
        BudgetError: no architecture lies in the range of MACs that is to be sampled.
    """
    supernet = build_supernet(space, seed=seed, by_role=settings.by_role)
    batches = images.train_batches(settings.recipe.batch_size, seed)
    learned = None
    if settings.sampling == "learnable":
        total = settings.recipe.epochs * len(batches)
        learned = LearnableSteps(
            supernet, space, budgets, images, settings.learnable, seed=seed, steps=total
        )
    steps = learned or sampling_steps(supernet, space, settings, seed=seed)

    def backward(step: Step) -> Tensor:
        if on_step is not None:
            on_step(step.number)
        return steps(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            batches,
            settings.recipe,
            device=device,
            seed=seed,
            backward=backward,
            state=steps if isinstance(steps, Stateful) else None,
            checkpoints=checkpoints,
            log=log,
        )
    if learned is not None and on_learned is not None:
        on_learned(learned.probabilities)
    return supernet, history
