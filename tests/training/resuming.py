"""Interrupted and resumed trainings."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from octnas.training.loop import Backward, Step, plain

CPU = torch.device("cpu")


class BrokenOffError(Exception):
    """Interrupts a training before a step."""


def until(steps: int, backward: Backward = plain) -> Backward:
    """Interrupt a training after some steps."""

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
    """A history without times."""
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in history]
