"""``octnas bench --supernet``: training steps of supernets against those of the vanilla network."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.config import RunConfig
from octnas.device import cpu_threads
from octnas.errors import require
from octnas.measure.backends import check_device, wait
from octnas.measure.settings import TrainingBenchSettings
from octnas.measure.timing import Ratio, compare, interleave, spread
from octnas.nn.conv import to_channels_last
from octnas.nn.supernet import build, build_supernet
from octnas.pipeline.space import space_without_data
from octnas.training.loop import Backward, Step, plain
from octnas.training.sampled import sampling_steps
from octnas.training.settings import Sampling

VANILLA = "vanilla"
SAMPLINGS: tuple[Sampling, ...] = ("uniform", "by_macs", "sandwich")

Steps = Callable[[int, int], int]
"""Runs the steps of a range of numbers; returns how many networks they trained."""


@dataclass(frozen=True, kw_only=True)
class StepBenchSettings(TrainingBenchSettings):
    """Settings of a benchmark of training steps, with several steps per round.

    So a round has architectures of several costs.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "1 or more")


@dataclass(frozen=True)
class StepRow:
    """The result for one method of training.

    Attributes:
        what: its name.
        networks: architectures trained per step, on average.
        steps_per_second, images_per_second: medians; an image counts once per step.
        spread: interquartile range as a share of the median.
        time: of a step, relative to the first method.
    """

    what: str
    networks: float
    steps_per_second: float
    images_per_second: float
    spread: float
    time: Ratio


@dataclass(frozen=True)
class StepBenchResult:
    """The result of a benchmark of training steps: a row for each method."""

    settings: StepBenchSettings
    rows: tuple[StepRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"schema": 1, **asdict(self)}


def bench_supernet(config: RunConfig, settings: StepBenchSettings) -> StepBenchResult:
    """Time training steps of an experiment's supernets and of its vanilla network.

    Images are random and stay on the device; the optimizer is SGD with momentum.

    Raises:
        SettingError: an unavailable device, or a range of MACs without architectures.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        return bench_steps(dict(_methods(config, settings)), settings)


def bench_steps(methods: Mapping[str, Steps], settings: StepBenchSettings) -> StepBenchResult:
    """Time interleaved methods of training, and compare them with the first."""
    done, networks = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0)

    def run(name: str) -> None:
        # New steps in every round: their architectures, and so their times, differ.
        networks[name] += methods[name](done[name], done[name] + settings.steps)
        done[name] += settings.steps

    seconds = interleave({name: partial(run, name) for name in methods}, settings.repeats)
    first = next(iter(seconds.values()))
    rows = []
    for name, times in seconds.items():
        rate = settings.steps / float(np.median(times))
        images, ratio = rate * settings.batch_size, compare(times, first)
        rows.append(StepRow(name, networks[name] / done[name], rate, images, spread(times), ratio))
    return StepBenchResult(settings, tuple(rows))


def _methods(config: RunConfig, settings: StepBenchSettings) -> Iterator[tuple[str, Steps]]:
    space = space_without_data(config)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(settings.batch_size, *space.input_size, generator=generator)
    classes = int(space.backbone_args["num_classes"])
    labels = torch.randint(classes, (settings.batch_size,), generator=generator)
    yield VANILLA, _steps(build(space.uniform(0.0), seed=0), plain, images, labels, settings)
    for switchable in (False, True):
        for sampling in SAMPLINGS:
            # The original network as a teacher would need its weights.
            own = replace(config.supernet, sampling=sampling, teacher="largest", alpha_warmup=0.0)
            supernet = build_supernet(space, seed=0, switchable=switchable)
            backward = sampling_steps(supernet, space, own, seed=0)
            name = f"{sampling}, switchable" if switchable else sampling
            yield name, _steps(supernet, backward, images, labels, settings)


def _steps(
    network: nn.Module,
    backward: Backward,
    images: Tensor,
    labels: Tensor,
    settings: StepBenchSettings,
) -> Steps:
    """Steps with channels last, as in `octnas.measure.bench`."""
    device = torch.device(settings.device)
    to_channels_last(network.to(device).train())
    images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    passes = 0

    def forward(some: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        with torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
            logits: Tensor = network(some)
        return logits.float()

    def run(begin: int, end: int) -> int:
        before = passes
        for number in range(begin, end):
            optimizer.zero_grad(set_to_none=True)
            backward(Step(number, images, labels, forward, F.cross_entropy))
            optimizer.step()
        wait(settings.device)
        return passes - before

    return run
