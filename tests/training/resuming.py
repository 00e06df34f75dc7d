"""Trainings that are broken off after some steps, and go on."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from octnas.training.loop import Backward, Step, plain

CPU = torch.device("cpu")


class BrokenOffError(Exception):
    """What ends a training in a test, before anything of a step is done."""


def until(steps: int, backward: Backward = plain) -> Backward:
    """Steps that end the training when so many are done."""

    def broken(step: Step) -> Tensor:
        if step.number == steps:
            raise BrokenOffError
        return backward(step)

    return broken


def assert_equal_weights(first: nn.Module, second: nn.Module) -> None:
    """Bit for bit, buffers included."""
    states = first.state_dict(), second.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def timeless(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What must be equal in two histories."""
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in history]
