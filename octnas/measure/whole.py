"""The latency of whole networks on this machine, with the slow rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octnas.architecture import Architecture
from octnas.device import cpu_threads
from octnas.measure.backends import Step, as_step, check_device, inference
from octnas.measure.settings import LatencySettings
from octnas.measure.timing import take_turns
from octnas.nn.deploy import deploy
from octnas.nn.supernet import build

SLOW = 0.95


@dataclass(frozen=True)
class WholeTime:
    """Seconds that a network takes for a batch.

    Attributes:
        median: over all rounds.
        p95: that 95 % of the rounds stay below.
    """

    median: float
    p95: float


def time_networks(
    architectures: Sequence[Architecture], settings: LatencySettings
) -> dict[str, WholeTime]:
    """Time whole networks of random weights, deployed, in turns.

    Args:
        architectures: octave or plain.
        settings: backend, device, precision, batch size, threads and rounds.

    Returns:
        By architecture id.

    Raises:
        SettingError: a backend or device that is not there.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        steps = {one.id: _step(one, settings) for one in architectures}
        seconds = take_turns(steps, settings.repeats)
    return {
        name: WholeTime(float(np.median(times)), float(np.quantile(times, SLOW)))
        for name, times in seconds.items()
    }


def _step(architecture: Architecture, settings: LatencySettings) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((settings.batch, *architecture.input_size), generator=generator)
    model = deploy(build(architecture, seed=0).eval())
    return as_step(inference(settings.engine, model, [images]), settings.engine)
