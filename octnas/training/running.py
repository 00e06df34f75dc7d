"""A training as it goes on: all that its steps change, and so all that a checkpoint holds."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octnas.errors import TrainingError
from octnas.training.checkpoint import Stateful


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
        self.total += loss

    def end_epoch(self, steps: int) -> None:
        """Add the epoch's row to the history.

        Raises:
            TrainingError: the loss became infinite or NaN.
        """
        epoch, mean = len(self.history) + 1, float(self.total) / steps
        if not math.isfinite(mean):
            raise TrainingError(f"the loss is {mean} in epoch {epoch}; lower recipe.lr")
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
        cuda = self.device.type == "cuda"
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
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
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
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and the device by a seed, and as they were afterwards."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not `torch.manual_seed`, which seeds other accelerators too, and they would stay so.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
