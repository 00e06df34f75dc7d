"""Training steps of a supernet, ready to be timed against those of the vanilla network."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.config import RunConfig
from octnas.device import cpu_threads
from octnas.measure.backends import check_device, wait
from octnas.measure.bench_steps import StepBenchResult, StepBenchSettings, Steps, bench_steps
from octnas.nn.conv import to_channels_last
from octnas.nn.supernet import build, build_supernet
from octnas.pipeline.space import space_without_data
from octnas.training.loop import Backward, Step, plain
from octnas.training.sampled import sampling_steps
from octnas.training.settings import Sampling

VANILLA = "vanilla"
SAMPLINGS: tuple[Sampling, ...] = ("uniform", "by_macs", "sandwich")


def bench_supernet(config: RunConfig, settings: StepBenchSettings) -> StepBenchResult:
    """Time the training steps of an experiment's supernets and of its vanilla network.

    Images are random and stay on the device; the optimizer is SGD with momentum.

    Args:
        config: the experiment; its data is not read.
        settings: how long.

    Raises:
        SettingError: a device that is not there, or a range of MACs without architectures.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        return bench_steps(dict(_ways(config, settings)), settings)


def _ways(config: RunConfig, settings: StepBenchSettings) -> Iterator[tuple[str, Steps]]:
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
            name = f"{sampling}, by role" if switchable else sampling
            yield name, _steps(supernet, backward, images, labels, settings)


def _steps(
    network: nn.Module,
    backward: Backward,
    images: Tensor,
    labels: Tensor,
    settings: StepBenchSettings,
) -> Steps:
    """Steps with channels last, as `octnas bench` times a training step."""
    place = torch.device(settings.device)
    to_channels_last(network.to(place).train())
    images, labels = images.to(place, memory_format=torch.channels_last), labels.to(place)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    half = settings.precision == "bfloat16"
    passes = 0

    def forward(some: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
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
