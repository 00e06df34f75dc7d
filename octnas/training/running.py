"""A training as it goes on: all that its steps change, and so all that a checkpoint holds."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octnas.errors import TrainingError
from octnas.training.checkpoint import Stateful
from octnas.training.ranks import Ranks


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
