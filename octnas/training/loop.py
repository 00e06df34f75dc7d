"""One training: a flat loop that returns its history.

A training as it goes on: all that its steps change, and so all that a checkpoint holds.

One step of a training: what it is given, and what it does with a network.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octnas.data.batches import Batch, TrainingBatches
from octnas.device import device_errors
from octnas.errors import SettingError, TrainingError, require
from octnas.nn.conv import to_channels_last
from octnas.runtime.signals import PATIENCE, PATIENCE_TOGETHER, Stopped, deferred, no_hurry
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.distributed import ALONE, Ranks
from octnas.training.settings import Recipe


@dataclass
class Running:
    """A training between two steps.

    Attributes:
        model: the network.
        optimizer: of its weights.
        scheduler: of the learning rate, by the number of steps.
        ema: the moving average of its weights; None for none.
        strategy: what its steps keep besides the network; None for nothing.
        device: where it trains.
        total: sum of the losses of this epoch's steps.
        ranks: this process among those that train together.
        step: how many steps are done.
        history: a row for each epoch that is done.
        before: seconds that were spent before this process went on.
        begun: when this process began, by the clock that `seconds` reads.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    ema: ModelEmaV3 | None
    strategy: Stateful | None
    device: torch.device
    total: Tensor
    ranks: Ranks
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    before: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long it has trained, interruptions left out."""
        return self.before + time.perf_counter() - self.begun

    def advance(self, loss: Tensor, clip_grad: float) -> None:
        """Change the weights by the gradients that they have."""
        if clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad)
        self.optimizer.step()
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        self.ranks.average(loss)
        self.total += loss

    def check(self) -> None:
        """Refuse what no checkpoint may hold, since nothing can go on from it.

        Raises:
            TrainingError: the loss became infinite or NaN.
        """
        if not math.isfinite(total := float(self.total)):
            epoch = len(self.history) + 1
            raise TrainingError(f"the loss is {total} in epoch {epoch}; lower recipe.lr")

    def end_epoch(self, steps: int) -> None:
        """Add the epoch's row to the history.

        Raises:
            TrainingError: the loss became infinite or NaN.
        """
        self.check()
        epoch, mean = len(self.history) + 1, float(self.total) / steps
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": mean,
                "lr": self.optimizer.param_groups[0]["lr"],
                "time": time.time(),
                "seconds": self.seconds,
            }
        )
        self.total.zero_()

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful.state_dict`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "strategy": None if self.strategy is None else dict(self.strategy.state_dict()),
            "total": self.total,
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Stateful.load_state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.strategy is not None:
            self.strategy.load_state_dict(state["strategy"])
        self.total.copy_(state["total"])
        self.step, self.history = state["step"], state["history"]
        self.before, self.begun = state["seconds"], time.perf_counter()


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generators of the CPU and the device as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Torch's generators, from which dropout draws, by the number of the step.

    So there is no state of theirs to be saved, on no rank.
    """
    mixed = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    # Not `torch.manual_seed`, which seeds other accelerators too, and they would stay so.
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(mixed)


def _as_it_is(_: Tensor) -> None:
    """The mean over one rank."""


@dataclass(frozen=True)
class Step:
    """What one step of a training is given.

    Attributes:
        number: counted from 0 over the whole training.
        images: ``(N, C, H, W)``.
        labels: classes, ``(N,)`` int64, or shares of the classes, ``(N, classes)``.
        forward: images to logits ``(N, classes)``, in float32.
        criterion: the loss of logits and labels, or of logits and another network's shares.
        rank: of this process among those that train together.
        alone: a context within which a forward and backward pass leaves its gradients to be
            averaged over the ranks with those of the next one outside of it.
        average: replaces values by their mean over the ranks.
    """

    number: int
    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor]
    rank: int = 0
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    average: Callable[[Tensor], None] = _as_it_is


Backward = Callable[[Step], Tensor]
"""Adds a step's gradients to those of the network; returns the loss, detached."""


def plain(step: Step) -> Tensor:
    """The step of a network that is what it is."""
    loss = step.criterion(step.forward(step.images), step.labels)
    loss.backward()
    return loss.detach()


Log = Callable[[Mapping[str, float]], None]
"""Called with a row of the history after every epoch.

A training that goes on calls it for the epochs that were done already, too, before it trains.
"""


def train(
    model: nn.Module,
    batches: TrainingBatches,
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int = 0,
    ranks: Ranks = ALONE,
    backward: Backward = plain,
    state: Stateful | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
) -> list[dict[str, float]]:
    """Train a network, in place, going on from its last checkpoint if there is one.

    A training that was killed and goes on gives what it would have given: the same bits on a CPU
    with as many threads. On a GPU it goes on from the same bits, with the same images, draws and
    settings; its kernels may add in another order, as they may between two trainings that were
    not broken off (`torch.use_deterministic_algorithms` forbids such kernels).

    Args:
        model: moved to ``device``.
        batches: of the training part.
        recipe: optimizer, schedule, precision.
        device: where to train.
        seed: of torch's generators, from which dropout and stochastic depth draw; the caller's
            random state is left as it was.
        ranks: this process among those that train together; ``batches`` are its own share.
        backward: what a step does; by default the network as it is learns the labels. What it
            draws must depend on the number of the step alone, or be part of ``state``.
        state: what the steps keep besides the network.
        checkpoints: where they are written and read; they stay when the training is finished.
        log: called after every epoch.

    Returns:
        Per epoch: ``epoch`` (from 1), ``train_loss`` (mean over its steps), ``lr`` (at its end),
        ``time`` (seconds since 1970), ``seconds`` (of training until then, interruptions left
        out). With ``recipe.ema`` the network has the averaged weights.

    Raises:
        SettingError: timm knows no such optimizer or scheduler.
        TrainingError: the loss became infinite or NaN, or the checkpoint is of another training.
        DeviceError: the device has failed or is full.
        Stopped: a signal (see `octnas.runtime.signals`), behind the checkpoint that it has led to.
    """
    model.to(device).train()
    if recipe.channels_last:
        to_channels_last(model)
    log = log or _nowhere
    criterion = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    patience = PATIENCE if ranks is ALONE else PATIENCE_TOGETHER
    with own_randomness(device), device_errors(), deferred(patience) as asked:
        running = _begin(model, recipe, len(batches), device, state, ranks)
        _restore(running, checkpoints)
        for row in running.history:
            log(row)
        wrapped, rank = ranks.wrap(model), ranks.part.rank
        forward, alone = _forward(wrapped, recipe, device), partial(ranks.alone, wrapped)
        written = time.monotonic()
        for images, labels in _rest(batches, recipe.epochs, running.step):
            images, labels = _moved(images, labels, recipe, device)
            seed_step(seed, running.step, rank, device)
            running.optimizer.zero_grad(set_to_none=True)
            step = Step(
                running.step, images, labels, forward, criterion, rank, alone, ranks.average
            )
            running.advance(backward(step), recipe.clip_grad)
            if running.step % len(batches) == 0:
                running.end_epoch(len(batches))
                log(running.history[-1])
            stop = ranks.any(asked())
            late = checkpoints is not None and time.monotonic() - written >= checkpoints.seconds
            if checkpoints is not None and (stop or late):
                written = time.monotonic()
                if ranks.first:
                    running.check()
                    no_hurry()
                    checkpoints.write(running.step, running.state_dict())
            if stop:
                raise Stopped(stop)
    if running.ema is not None:
        model.load_state_dict(running.ema.module.state_dict())
    return running.history


def _nowhere(_: Mapping[str, float]) -> None:
    """Where rows go that nobody asked for."""


def _restore(running: Running, checkpoints: Checkpoints | None) -> None:
    """Go on from the last checkpoint: rank 0 reads it, so that all go on from the same."""
    if checkpoints is None:
        return
    if running.ranks.first:
        checkpoints.restore(running)
    if running.ranks.part.ranks > 1:
        state = running.ranks.share(running.state_dict())
        if not running.ranks.first:
            running.load_state_dict(state)


def _begin(
    model: nn.Module,
    recipe: Recipe,
    steps: int,
    device: torch.device,
    state: Stateful | None,
    ranks: Ranks,
) -> Running:
    optimizer = _optimizer(model, recipe)
    return Running(
        model=model,
        optimizer=optimizer,
        scheduler=_scheduler(optimizer, recipe, steps),
        # Warmed up, or the weights that it began with would outweigh those of a short training.
        ema=ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None,
        strategy=state,
        device=device,
        total=torch.zeros((), device=device),
        ranks=ranks,
    )


def _rest(batches: TrainingBatches, epochs: int, step: int) -> Iterator[Batch]:
    """The batches of all epochs from a step on."""
    first, start = divmod(step, len(batches))
    for epoch in range(first, epochs):
        yield from batches.epoch(epoch, start if epoch == first else 0)


def _forward(model: nn.Module, recipe: Recipe, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images to logits in float32, computed in the recipe's precision."""
    if recipe.amp == "none":
        return model

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits: Tensor = model(images)
        return logits.float()

    return forward


def _moved(
    images: Tensor, labels: Tensor, recipe: Recipe, device: torch.device
) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    moved = images.to(device, non_blocking=True, memory_format=layout)
    return moved, labels.to(device, non_blocking=True)


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
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise SettingError("optimizer", recipe.optimizer, f"what timm knows ({error})") from None
    first_order = not getattr(optimizer, "is_second_order", False)
    require(first_order, "optimizer", recipe.optimizer, "optimizers that need no second derivative")
    return optimizer


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
