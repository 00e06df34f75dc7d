"""One step of a training: what it is given, and what it does with a network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What one step of a training is given.

    Attributes:
        number: counted from 0 over the whole training.
        images: ``(N, C, H, W)``.
        labels: classes, ``(N,)`` int64, or shares of the classes, ``(N, classes)``.
        forward: images to logits ``(N, classes)``, in float32.
        criterion: the loss of logits and labels, or of logits and another network's shares.
    """

    number: int
    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor]


Backward = Callable[[Step], Tensor]
"""Adds a step's gradients to those of the network; returns the loss, detached."""


def plain(step: Step) -> Tensor:
    """The step of a network that is what it is."""
    loss = step.criterion(step.forward(step.images), step.labels)
    loss.backward()
    return loss.detach()
