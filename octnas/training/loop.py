"""The training loop: steps, history, checkpoints."""

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
from octnas.training.distributed import ALONE, Processes
from octnas.training.settings import DistillationSettings, Recipe

Log = Callable[[Mapping[str, float]], None]
"""Called with a row of the history after every epoch.

A resumed training calls it for the epochs before its checkpoint first.
"""


def no_log(_: Mapping[str, float]) -> None:
    """Drop the row."""


@dataclass(frozen=True)
class Step:
    """One step of a training, before its backward pass.

    Attributes:
        number: from 0, over the whole training.
        images: ``(N, C, H, W)``.
        labels: classes, ``(N,)`` int64, or class probabilities, ``(N, classes)``.
        forward: images to logits ``(N, classes)``, in float32.
        criterion: loss of logits and labels, or of logits and a teacher's probabilities.
        rank: of this process.
        no_sync: a context in which backward passes accumulate gradients locally; the first one
            after it averages them over the processes.
        average: replaces a tensor by its mean over the processes.
    """

    number: int
    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor]
    rank: int = 0
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    average: Callable[[Tensor], None] = ALONE.average


Backward = Callable[[Step], Tensor]
"""Adds a step's gradients to those of the network; returns the loss, detached."""


def plain(step: Step) -> Tensor:
    """The backward pass of a fixed network that learns the labels."""
    loss = step.criterion(step.forward(step.images), step.labels)
    loss.backward()
    return loss.detach()


Teacher = Callable[[Tensor], Tensor]
"""Images to the logits of a frozen network."""


def frozen(network: nn.Module, recipe: Recipe, device: torch.device) -> Teacher:
    """A network as a teacher, in eval mode; it is moved to the device.

    It computes in the precision and the memory format of the recipe, as those whom it teaches.
    """
    network.to(device).eval().requires_grad_(False)
    if recipe.channels_last:
        to_channels_last(network)
    forward = _forward(network, recipe, device)

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor:
        return forward(images)

    return teach


def distilled(teacher: Teacher, settings: DistillationSettings) -> Backward:
    """The backward pass of a fixed network that learns labels and a teacher (arXiv 1503.02531)."""
    share, temperature = settings.weight, settings.temperature

    def backward(step: Step) -> Tensor:
        logits = step.forward(step.images)
        known = (teacher(step.images) / temperature).log_softmax(dim=1)
        found = (logits / temperature).log_softmax(dim=1)
        soft = F.kl_div(found, known, reduction="batchmean", log_target=True) * temperature**2
        loss = (1 - share) * step.criterion(logits, step.labels) + share * soft
        loss.backward()
        return loss.detach()

    return backward


@dataclass
class Running:
    """The state of a training between two steps: what a checkpoint holds.

    Attributes:
        model, optimizer, scheduler, ema: the network, and what updates or averages its weights.
        strategy: state of the backward passes, if any.
        total: sum of the losses of this epoch's steps.
        step: number of completed steps.
        history: a row for each completed epoch.
        before: seconds of training before this process resumed it.
        begun: start of this process's part, by `time.perf_counter`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    ema: ModelEmaV3 | None
    strategy: Stateful | None
    total: Tensor
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    before: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds of training, without interruptions."""
        return self.before + time.perf_counter() - self.begun

    def advance(self, loss: Tensor, clip_grad: float) -> None:
        """Update the weights by their gradients."""
        if clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad)
        self.optimizer.step()
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        self.total += loss

    def check(self) -> float:
        """The sum of this epoch's losses.

        Raises:
            TrainingError: it is not finite, so no checkpoint may be written.
        """
        if not math.isfinite(total := float(self.total)):
            epoch = len(self.history) + 1
            raise TrainingError(f"the loss is {total} in epoch {epoch}; lower recipe.lr")
        return total

    def end_epoch(self, steps: int) -> None:
        """Add the epoch's row to the history."""
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "train_loss": self.check() / steps,
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


def train(
    model: nn.Module,
    batches: TrainingBatches,
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int = 0,
    processes: Processes = ALONE,
    backward: Backward = plain,
    state: Stateful | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
) -> list[dict[str, float]]:
    """Train a network in place, resuming from its last checkpoint if there is one.

    On a CPU, a resumed training gives the same bits as an uninterrupted one with as many threads.
    On a GPU it resumes with the same bits, images and draws, but kernels may add in another order,
    as between any two trainings (`torch.use_deterministic_algorithms` forbids such kernels).

    Args:
        model: moved to ``device``.
        batches: of the training part; this process's share of them.
        recipe: optimizer, schedule, precision.
        device: where to train.
        seed: of dropout and stochastic depth. The caller's random state is restored.
        processes: that train together.
        backward: the backward pass of a step; by default `plain`. What it draws must depend on
            the number of the step alone, or on ``state``.
        state: of the backward passes, saved in checkpoints.
        checkpoints: where to write and read them; they stay when the training is finished.
        log: called after every epoch.

    Returns:
        Per epoch: ``epoch`` (from 1), ``train_loss`` (mean over its steps), ``lr`` (at its end),
        ``time`` (seconds since 1970), ``seconds`` (of training so far, without interruptions).
        With ``recipe.ema`` the network has the averaged weights.

    Raises:
        SettingError: timm has no such optimizer or scheduler.
        TrainingError: the loss is not finite, or the checkpoint is from another training.
        DeviceError: the device has failed or is out of memory.
        Stopped: by a signal (see `octnas.runtime.signals`), after writing a checkpoint.
    """
    model.to(device).train()
    if recipe.channels_last:
        to_channels_last(model)
    log = log or no_log
    criterion = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    patience = PATIENCE_TOGETHER if processes.several else PATIENCE
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    with own_randomness(device), device_errors(), deferred(patience) as asked:
        optimizer = _optimizer(model, recipe)
        running = Running(
            model=model,
            optimizer=optimizer,
            scheduler=_scheduler(optimizer, recipe, len(batches)),
            # Without warm-up, the initial weights would dominate a short training.
            ema=ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None,
            strategy=state,
            total=torch.zeros((), device=device),
        )
        if checkpoints is not None:
            _restore(running, checkpoints, processes)
        for row in running.history:
            log(row)
        wrapped, rank = processes.wrap(model), processes.part.rank
        forward, no_sync = _forward(wrapped, recipe, device), partial(processes.no_sync, wrapped)
        written = time.monotonic()
        for images, labels in _remaining(batches, recipe.epochs, running.step):
            images = images.to(device, non_blocking=True, memory_format=layout)
            labels = labels.to(device, non_blocking=True)
            seed_step(seed, running.step, rank, device)
            optimizer.zero_grad(set_to_none=True)
            step, average = running.step, processes.average
            loss = backward(Step(step, images, labels, forward, criterion, rank, no_sync, average))
            average(loss)
            running.advance(loss, recipe.clip_grad)
            if running.step % len(batches) == 0:
                running.end_epoch(len(batches))
                log(running.history[-1])
            stop = processes.max(asked())
            now = time.monotonic()
            if checkpoints is not None and (stop or now - written >= checkpoints.seconds):
                written = now
                if processes.first:
                    running.check()
                    no_hurry()
                    checkpoints.write(running.step, running.state_dict())
            if stop:
                raise Stopped(stop)
    if running.ema is not None:
        model.load_state_dict(running.ema.module.state_dict())
    return running.history


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Restore torch's generators of the CPU and the device after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's generators for one step, so that checkpoints need not save them."""
    mixed = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    # Not `torch.manual_seed`, which would seed other accelerators for good.
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(mixed)


def _restore(running: Running, checkpoints: Checkpoints, processes: Processes) -> None:
    """Restore rank 0 from the last checkpoint, and the others from rank 0."""
    if processes.first:
        checkpoints.restore(running)
    if processes.several:
        state = processes.broadcast(running.state_dict())
        if not processes.first:
            running.load_state_dict(state)


def _remaining(batches: TrainingBatches, epochs: int, step: int) -> Iterator[Batch]:
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


def check_recipe(recipe: Recipe, images: int) -> None:
    """Check a recipe before any training begins, for a number of training images.

    Raises:
        SettingError: timm has no such optimizer or scheduler, or a batch is larger than the
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
        raise SettingError("optimizer", recipe.optimizer, f"timm's optimizers ({error})") from None
    first_order = not getattr(optimizer, "is_second_order", False)
    require(first_order, "optimizer", recipe.optimizer, "optimizers without second derivatives")
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    allowed = "at most the number of training images"
    require(steps > 0, "batch_size", recipe.batch_size, allowed)
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
        raise SettingError("scheduler", recipe.scheduler, f"timm's schedulers ({error})") from None
    if scheduler is None:
        raise SettingError("scheduler", recipe.scheduler, "timm's schedulers, such as 'cosine'")
    return scheduler
