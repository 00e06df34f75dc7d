"""Supernet training that learns a distribution over α for each budget along with the weights.

Each budget has logits over the choices of every site. A step trains the weights on one
architecture, drawn from a budget's distribution or, so that the weights do not only learn early
favourites, from all architectures. Every few steps the logits learn on images that the weights
never see, with one hard sample (straight-through Gumbel softmax, arXiv 1611.01144, §2) of the
network in `octnas.nn.relaxation`, by the augmented Lagrangian

    loss + λ·v + ρ/2·v²,  v = E[MACs] / budget − 1

with the exact expectation. λ increases by η·v after every step (Nocedal and Wright, Numerical
Optimization, §17.3), so the expectation ends at the budget whatever the scale of the loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.data.images import Images
from octnas.nn.relaxation import Relaxed, choice_masks
from octnas.nn.supernet import activate
from octnas.space.costs import Budget
from octnas.space.distribution import Probabilities, draw, expected_macs, tilted
from octnas.space.search_space import SearchSpace
from octnas.training.loop import Step
from octnas.training.sampled import of_about_equal_macs
from octnas.training.settings import LearnableSettings

# Streams of random numbers of one step.
_WEIGHTS, _LOGITS, _EXPLORES = 0, 1, 2


class Learner:
    """The logits of one budget, initialised so that the expected MACs meet its upper bound."""

    def __init__(self, space: SearchSpace, budget: Budget, settings: LearnableSettings) -> None:
        self.budget, self.multiplier = budget, 0.0
        self._space, self._settings = space, settings
        start = tilted(space, budget.max_macs)
        # float64: small differences matter, and there are few logits.
        self._logits = {
            site.name: torch.tensor(start[site.name], dtype=torch.float64).log().requires_grad_()
            for site in space.searchable
        }
        self._optimizer = torch.optim.Adam(
            self._logits.values(), lr=settings.lr, betas=(0.5, 0.999)
        )

    @property
    def probabilities(self) -> Probabilities:
        """By searchable site."""
        return {name: tuple(p.tolist()) for name, p in self._shares().items()}

    def sample(self, rng: np.random.Generator, temperature: float) -> dict[str, Tensor]:
        """A one-hot choice at every searchable site, shape ``(choices,)``, with a gradient."""
        sample = {}
        for name, logits in self._logits.items():
            noise = torch.from_numpy(rng.gumbel(size=len(logits)))
            soft = ((logits + noise) / temperature).softmax(0)
            hard = F.one_hot(soft.argmax(), len(logits)).double()
            # In this order the sum is exactly 0 or 1.
            sample[name] = hard + (soft - soft.detach())
        return sample

    def learn(self, loss: Tensor, lr: float, average: Callable[[Tensor], None]) -> None:
        """Update the logits and the multiplier once, by the loss of a sample.

        ``average`` replaces a gradient by its mean over the processes.
        """
        violation = expected_macs(self._space, self._shares()) / self.budget.max_macs - 1
        penalty = self.multiplier * violation + self._settings.penalty / 2 * violation**2
        logits = list(self._logits.values())
        grads = torch.autograd.grad(loss.double().cpu() + penalty, logits)
        for value, grad in zip(logits, grads, strict=True):
            average(grad)
            value.grad = grad
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        self.multiplier += self._settings.multiplier_lr * float(violation.detach())

    def state_dict(self) -> dict[str, Any]:
        """See `octnas.training.checkpoint.Stateful`."""
        return {
            "logits": {name: logits.detach().clone() for name, logits in self._logits.items()},
            "optimizer": self._optimizer.state_dict(),
            "multiplier": self.multiplier,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `octnas.training.checkpoint.Stateful`."""
        with torch.no_grad():
            for name, logits in self._logits.items():
                logits.copy_(state["logits"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.multiplier = state["multiplier"]

    def _shares(self) -> dict[str, Tensor]:
        return {name: logits.softmax(0) for name, logits in self._logits.items()}


class LearnableSteps:
    """The backward passes of a training (`octnas.training.loop.Backward`), with a state.

    Step i is for budget i modulo their number. Seed and step decide all draws.

    Args:
        supernet: its active architecture is changed.
        space: of the sites.
        budgets: one distribution is learned for each.
        images: the logits learn on search_val, which is held in memory.
        settings: schedule and rates.
        explore: α by site for the number of a step that does not draw from a distribution.
        seed: of all draws.
        steps: of the whole training.
    """

    def __init__(
        self,
        supernet: nn.Module,
        space: SearchSpace,
        budgets: Sequence[Budget],
        images: Images,
        settings: LearnableSettings,
        *,
        explore: Callable[[int], Mapping[str, float]],
        seed: int,
        steps: int,
    ) -> None:
        self.learners = [Learner(space, budget, settings) for budget in budgets]
        self._supernet, self._space, self._settings = supernet, space, settings
        self._explore, self._seed, self._steps = explore, seed, steps
        self._warmup = math.ceil(settings.warmup * steps)
        parts = zip(*images.batches("search_val", settings.batch_size), strict=True)
        self._images, self._labels = (torch.cat([x.cpu() for x in part]) for part in parts)
        self._relaxed: Relaxed | None = None
        self._masks: dict[str, Tensor] = {}

    def __call__(self, step: Step) -> Tensor:
        """Train the logits when it is their turn, then the weights; the loss of the latter."""
        turn, index = divmod(step.number, len(self.learners))
        learner = self.learners[index]
        if step.number >= self._warmup and turn % self._settings.every == 0:
            self._learn(learner, step)
        activate(self._supernet, self._draw(learner, step))
        loss = step.criterion(step.forward(step.images), step.labels)
        loss.backward()
        return loss.detach()

    @property
    def probabilities(self) -> dict[str, Probabilities]:
        """By searchable site, for each budget by name."""
        return {learner.budget.name: learner.probabilities for learner in self.learners}

    def state_dict(self) -> dict[str, Any]:
        """See `octnas.training.checkpoint.Stateful`."""
        return {learner.budget.name: learner.state_dict() for learner in self.learners}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `octnas.training.checkpoint.Stateful`."""
        for learner in self.learners:
            learner.load_state_dict(state[learner.budget.name])

    def _draw(self, learner: Learner, step: Step) -> Mapping[str, float]:
        """α by site to train the weights on; either all processes explore or none."""
        chance = np.random.default_rng((self._seed, step.number, _EXPLORES)).random()
        if chance < self._settings.explore:
            return self._explore(step.number)
        space, shares = self._space, learner.probabilities
        stream = (self._seed, step.number, _WEIGHTS)
        first = draw(space, shares, np.random.default_rng((*stream, 0)))
        if not step.rank:
            return first
        own = np.random.default_rng((*stream, step.rank))
        return of_about_equal_macs(space, first, lambda: draw(space, shares, own))

    def _learn(self, learner: Learner, step: Step) -> None:
        if self._relaxed is None:
            # Only now is the supernet on its device.
            self._relaxed = Relaxed(self._supernet)
            self._masks = choice_masks(self._supernet, self._space)
        rng = np.random.default_rng((self._seed, step.number, _LOGITS, step.rank))
        done = (step.number - self._warmup) / max(1, self._steps - self._warmup)
        sample = learner.sample(rng, self._temperature(done))
        masks = {
            site: sample[site].to(table) @ table if site in sample else table[0]
            for site, table in self._masks.items()
        }
        count = len(self._labels)
        some = rng.choice(count, min(count, self._settings.batch_size), replace=False)
        images, labels = (x[some].to(step.images.device) for x in (self._images, self._labels))
        learner.learn(
            F.cross_entropy(self._relaxed(images, masks), labels), self._lr(done), step.average
        )

    def _temperature(self, done: float) -> float:
        """Geometric decay from start to end."""
        start, end = self._settings.temperature
        return start * math.exp(done * math.log(end / start))

    def _lr(self, done: float) -> float:
        """Cosine decay to zero, so that the distributions settle."""
        return self._settings.lr * (1 + math.cos(math.pi * done)) / 2
