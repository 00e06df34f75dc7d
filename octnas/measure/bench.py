"""Octave networks against the vanilla one: time, MACs, and memory in training."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octnas.device import cpu_threads
from octnas.errors import SettingError
from octnas.measure.backends import Step, check_device, prepare
from octnas.measure.settings import VANILLA, BenchSettings
from octnas.measure.timing import Ratio, compare, interleave, kept_for_backward, spread
from octnas.nn.backbone import create_backbone
from octnas.nn.cost import cost
from octnas.nn.octavize import octavize
from octnas.nn.supernet import recalibrate

Log = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One network in one backend at one batch size.

    Attributes:
        backend, batch: as in the settings.
        alpha: label of the network; ``"0"`` is the vanilla one.
        milliseconds: median of a batch, or of a training step.
        spread: interquartile range as a share of the median.
        latency_ratio: to the vanilla network in the same backend, median by round.
        latency_low, latency_high: its 95 % interval.
        undecided: the machine was too noisy to tell which of the two is faster.
        macs: multiply-adds of one image.
        macs_ratio: to the vanilla network's.
        quotient: `latency_ratio` over `macs_ratio`; 1 if time follows MACs.
        kept_bytes: kept for backward, by part of the network; None in inference.
        kept_ratio: their sum over the vanilla network's; None in inference.
    """

    backend: str
    batch: int
    alpha: str
    milliseconds: float
    spread: float
    latency_ratio: float
    latency_low: float
    latency_high: float
    undecided: bool
    macs: int
    macs_ratio: float
    quotient: float
    kept_bytes: dict[str, int] | None = None
    kept_ratio: float | None = None


@dataclass(frozen=True)
class BestAgainstBest:
    """The octave network in its best backend against the vanilla one in its best.

    Attributes:
        batch, alpha: of the octave network.
        octave_backend, vanilla_backend: the fastest for each.
        ratio: of their times, with its interval.
        macs_ratio: of their multiply-adds.
    """

    batch: int
    alpha: str
    octave_backend: str
    vanilla_backend: str
    ratio: Ratio
    macs_ratio: float


@dataclass(frozen=True)
class BenchResult:
    """The results of a benchmark.

    Attributes:
        rows: by batch size, backend and α.
        best: by batch size and α.
        environment: versions, device and threads.
    """

    settings: BenchSettings
    rows: tuple[Row, ...]
    best: tuple[BestAgainstBest, ...]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        return {"schema": 1, **asdict(self)}


def bench(settings: BenchSettings, log: Log = lambda _: None) -> BenchResult:
    """Time octave networks and the vanilla one, interleaved.

    Weights are random; batch norms have the statistics of random images, so that logits do not
    vanish and can be compared between backends.

    Raises:
        SettingError: an unknown model, a missing backend or device, or a batch too small to train
            on.
        MeasureError: a backend's logits differ from the model's.
        UnsupportedModelError, ArchitectureError: see `octnas.octavize`.
    """
    check_device(settings.device)
    rows: list[Row] = []
    best: list[BestAgainstBest] = []
    with cpu_threads(settings.threads):
        # First, since it is fast and refuses unsupported models.
        macs = {label: _macs(settings, label) for label in (VANILLA, *settings.alphas)}
        networks = _networks(settings)
        _check_batches(settings, networks)
        for batch in settings.batches:
            seconds = _time(settings, networks, batch, log)
            kept = _kept(settings, networks, batch)
            for backend in settings.backends:
                rows += [_row(backend, batch, label, seconds, macs, kept) for label in networks]
            best += [_best(settings, batch, label, seconds, macs) for label in settings.alphas]
    return BenchResult(settings, tuple(rows), tuple(best), _environment(settings))


def _networks(settings: BenchSettings) -> dict[str, nn.Module]:
    """The vanilla network and the octave ones, all with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # timm starts the last batch norm of every block at zero, and logits would nearly vanish.
        vanilla = create_backbone(settings.model, {"zero_init_last": False})
        recalibrate(vanilla, [torch.randn(8, 3, 64, 64)])
    return {VANILLA: vanilla} | {
        label: octavize(copy.deepcopy(vanilla), alphas, channel_multiple=settings.channel_multiple)
        for label, alphas in settings.alphas.items()
    }


def _check_batches(settings: BenchSettings, networks: dict[str, nn.Module]) -> None:
    """Refuse to train on single images if a feature map has one pixel; runs on the meta device."""
    if settings.mode == "inference" or 1 not in settings.batches:
        return
    image = torch.empty(1, 3, settings.input_size, settings.input_size, device="meta")
    for network in networks.values():
        try:
            copy.deepcopy(network).to("meta").train()(image)
        except ValueError:
            # torch's batch norms refuse one value per channel.
            raise SettingError(
                "batch",
                1,
                f"2 or more, or a larger input_size than {settings.input_size}: batch norms cannot "
                "train on one pixel of one image",
            ) from None


def _macs(settings: BenchSettings, label: str) -> int:
    size = (3, settings.input_size, settings.input_size)
    alphas = 0.0 if label == VANILLA else settings.alphas[label]
    multiple = settings.channel_multiple
    return cost(settings.model, alphas, input_size=size, channel_multiple=multiple).macs


Seconds = dict[tuple[str, str], np.ndarray]


def _time(settings: BenchSettings, networks: dict[str, nn.Module], batch: int, log: Log) -> Seconds:
    images = _images(settings, batch)
    steps: dict[tuple[str, str], Step] = {}
    for backend in settings.backends:
        for label, network in networks.items():
            log(f"batch {batch}: {backend}, α {label}")
            steps[backend, label] = prepare(backend, network, images, settings)
    log(f"batch {batch}: timing")
    return interleave(steps, settings.repeats)


def _kept(
    settings: BenchSettings, networks: dict[str, nn.Module], batch: int
) -> dict[str, dict[str, int]] | None:
    if settings.mode == "inference":
        return None
    last: Any = {"memory_format": torch.channels_last}
    images = _images(settings, batch).to(**last)
    return {
        label: kept_for_backward(copy.deepcopy(network).train().to(**last), images)
        for label, network in networks.items()
    }


def _images(settings: BenchSettings, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, settings.input_size, settings.input_size, generator=generator)


def _row(
    backend: str,
    batch: int,
    label: str,
    seconds: Seconds,
    macs: dict[str, int],
    kept: dict[str, dict[str, int]] | None,
) -> Row:
    own = seconds[backend, label]
    ratio = compare(own, seconds[backend, VANILLA])
    macs_ratio = macs[label] / macs[VANILLA]
    total = None if kept is None else {name: sum(parts.values()) for name, parts in kept.items()}
    return Row(
        backend=backend,
        batch=batch,
        alpha=label,
        milliseconds=float(np.median(own)) * 1e3,
        spread=spread(own),
        latency_ratio=ratio.value,
        latency_low=ratio.low,
        latency_high=ratio.high,
        undecided=ratio.undecided and label != VANILLA,
        macs=macs[label],
        macs_ratio=macs_ratio,
        quotient=ratio.value / macs_ratio,
        kept_bytes=kept[label] if kept else None,
        kept_ratio=total[label] / total[VANILLA] if total else None,
    )


def _best(
    settings: BenchSettings, batch: int, label: str, seconds: Seconds, macs: dict[str, int]
) -> BestAgainstBest:
    def fastest(name: str) -> str:
        return min(settings.backends, key=lambda backend: np.median(seconds[backend, name]))

    octave, vanilla = fastest(label), fastest(VANILLA)
    return BestAgainstBest(
        batch=batch,
        alpha=label,
        octave_backend=octave,
        vanilla_backend=vanilla,
        ratio=compare(seconds[octave, label], seconds[vanilla, VANILLA]),
        macs_ratio=macs[label] / macs[VANILLA],
    )


def _environment(settings: BenchSettings) -> dict[str, Any]:
    on_gpu = settings.device.startswith("cuda")
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(settings.device)
        if on_gpu
        else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
        "threads": settings.threads,
    }
