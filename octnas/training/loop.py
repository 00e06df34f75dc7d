"""One training: a flat loop that returns its history."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from octnas.data.images import TrainingBatches
from octnas.errors import SettingError, TrainingError
from octnas.training.settings import Recipe
from octnas.training.step import Backward, Step, plain

Log = Callable[[Mapping[str, float]], None]
"""Called after every epoch with ``epoch``, ``train_loss``, ``lr`` and ``time``."""


def train(
    model: nn.Module,
    batches: TrainingBatches,
    recipe: Recipe,
    *,
    device: torch.device,
    backward: Backward = plain,
    log: Log | None = None,
) -> list[dict[str, float]]:
    """Train a network, in place.

    Args:
        model: moved to ``device``.
        batches: of the training part.
        recipe: optimizer and schedule.
        device: where to train.
        backward: what a step does; by default the network as it is learns the labels.
        log: called after every epoch.

    Returns:
        Per epoch: ``epoch`` (from 1), ``train_loss`` (mean over its steps), ``lr`` (at its end),
        ``time`` (seconds since 1970).

    Raises:
        SettingError: timm knows no such optimizer or scheduler.
        TrainingError: the loss became infinite or NaN.
    """
    model.to(device).train()
    optimizer = _optimizer(model, recipe)
    scheduler = _scheduler(optimizer, recipe, len(batches))
    criterion = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    history: list[dict[str, float]] = []
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        total = torch.zeros((), device=device)
        for images, labels in batches.epoch(epoch - 1):
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            optimizer.zero_grad(set_to_none=True)
            loss = backward(Step(step, images, labels, model, criterion))
            if recipe.clip_grad:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            total += loss
        mean = float(total) / len(batches)
        if not math.isfinite(mean):
            raise TrainingError(f"the loss is {mean} in epoch {epoch}; lower recipe.lr")
        lr = optimizer.param_groups[0]["lr"]
        history.append({"epoch": epoch, "train_loss": mean, "lr": lr, "time": time.time()})
        if log is not None:
            log(history[-1])
    return history


def check_recipe(recipe: Recipe, images: int) -> None:
    """Find out what is wrong with a recipe before hours of training.

    Args:
        recipe: to check.
        images: size of the training part.

    Raises:
        SettingError: timm knows no such optimizer or scheduler, or a batch is larger than the
            training part.
    """
    _scheduler(_optimizer(nn.Linear(1, 1), recipe), recipe, images // recipe.batch_size)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(  # type: ignore[no-any-return]
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise SettingError("optimizer", recipe.optimizer, f"what timm knows ({error})") from None


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    if steps == 0:
        raise SettingError(
            "batch_size", recipe.batch_size, "no more than the images of the training part"
        )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.scheduler,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except (ValueError, AssertionError) as error:
        raise SettingError("scheduler", recipe.scheduler, f"what timm knows ({error})") from None
    if scheduler is None:
        raise SettingError("scheduler", recipe.scheduler, "what timm knows, such as 'cosine'")
    return scheduler
