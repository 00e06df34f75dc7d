"""Training steps that take turns: how many of them a second, and against the first."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from octnas.errors import require
from octnas.measure.settings import TrainingBenchSettings
from octnas.measure.timing import Ratio, compare, interleave, spread

Steps = Callable[[int, int], int]
"""Does the training steps of two numbers' range; returns how many networks they trained."""


@dataclass(frozen=True, kw_only=True)
class StepBenchSettings(TrainingBenchSettings):
    """How long a benchmark of training steps looks.

    Attributes:
        steps: of one turn, so that a turn holds architectures of several costs.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "1 or more")


@dataclass(frozen=True)
class StepRow:
    """One way of training.

    Attributes:
        what: its name.
        networks: architectures that a step trains, on average.
        steps_per_second, images_per_second: medians; an image counts once in a step.
        spread: distance of the quartiles as a share of the median.
        time: of a step over that of the first way.
    """

    what: str
    networks: float
    steps_per_second: float
    images_per_second: float
    spread: float
    time: Ratio


@dataclass(frozen=True)
class StepBenchResult:
    """What a benchmark of training steps has found.

    Attributes:
        settings: what was asked for.
        rows: by way, the one that all are compared with first.
    """

    settings: StepBenchSettings
    rows: tuple[StepRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        return {"schema": 1, **asdict(self)}


def bench_steps(ways: Mapping[str, Steps], settings: StepBenchSettings) -> StepBenchResult:
    """Time ways of training, taking turns.

    Args:
        ways: by name; the first is what the others are compared with.
        settings: how long.
    """
    done = dict.fromkeys(ways, 0)
    networks = dict.fromkeys(ways, 0)

    def turn(name: str) -> None:
        # Other steps in every turn: their architectures, and so their times, differ.
        networks[name] += ways[name](done[name], done[name] + settings.steps)
        done[name] += settings.steps

    seconds = interleave({name: partial(turn, name) for name in ways}, settings.repeats)
    first = next(iter(ways))
    rows = []
    for name, times in seconds.items():
        per_second = settings.steps / float(np.median(times))
        rows.append(
            StepRow(
                name,
                networks[name] / done[name],
                per_second,
                per_second * settings.batch_size,
                spread(times),
                compare(times, seconds[first]),
            )
        )
    return StepBenchResult(settings, tuple(rows))
