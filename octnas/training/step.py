"""One step of a training: what it is given, and what it does with a network."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor


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
