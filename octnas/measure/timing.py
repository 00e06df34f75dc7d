"""Interleaved timing and ratios of times; peaks of memory; memory kept for backward."""

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Key = TypeVar("Key")


@dataclass(frozen=True)
class Ratio:
    """How much longer one function takes than another.

    Attributes:
        value: median of the ratios by round.
        low, high: its 95 % interval.
    """

    value: float
    low: float
    high: float

    @property
    def undecided(self) -> bool:
        """Whether the machine is too noisy to tell which of the two is faster."""
        return self.low <= 1.0 <= self.high


def interleave(
    functions: Mapping[Key, Callable[[], None]], repeats: int, warm_up: int = 2
) -> dict[Key, np.ndarray]:
    """Time functions alternately, in rounds, so that a slow phase of the machine affects all alike.

    Args:
        functions: each returns once its work is done.
        repeats: timed rounds.
        warm_up: rounds before those.

    Returns:
        Seconds of every round, shape ``(repeats,)``.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in functions}
    for round_number in range(warm_up + repeats):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number >= warm_up:
                seconds[key].append(time.perf_counter() - start)
    return {key: np.array(values) for key, values in seconds.items()}


def compare(seconds: np.ndarray, base: np.ndarray) -> Ratio:
    """The ratio of two interleaved functions, with a distribution-free interval.

    Its ends are order statistics of the ratios by round, with ranks from a sign test at 5 % (normal
    approximation with continuity correction).

    Args:
        seconds, base: of every round, shape ``(rounds,)``.
    """
    by_round = np.sort(seconds / base)
    reach = 0.98 * np.sqrt(len(by_round))
    low = max(0, int(np.floor((len(by_round) - 1) / 2 - reach)))
    high = len(by_round) - 1 - low
    return Ratio(float(np.median(by_round)), float(by_round[low]), float(by_round[high]))


def spread(seconds: np.ndarray) -> float:
    """Interquartile range as a share of the median."""
    first, median, third = np.quantile(seconds, [0.25, 0.5, 0.75])
    return float((third - first) / median)


_PROCESS = Path("/proc/self")


@dataclass
class Usage:
    """Peaks of memory, known once the work is done.

    Attributes:
        memory: of this process in main memory, in bytes, including what it held before.
        gpu_memory: reserved by torch on the GPU, in bytes; 0 on a CPU.
    """

    memory: int = 0
    gpu_memory: int = 0


@contextmanager
def memory_peak(device: torch.device) -> Iterator[Usage]:
    """Record the peak of memory inside; since the process began, where it cannot be reset."""
    usage = Usage()
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield usage
    usage.memory = _peak()
    if device.type == "cuda":
        # Reserved rather than allocated: the GPU must have that much.
        usage.gpu_memory = torch.cuda.max_memory_reserved(device)


def _peak() -> int:
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept_for_backward(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Bytes that autograd keeps after a forward pass, without parameters and buffers.

    Args:
        model: a timm ResNet in training mode, octave or plain.
        images: ``(N, C, H, W)``.

    Returns:
        By part of the network: ``"stem"``, the stages by name, ``"head"``. Every storage counts
        once, for the part that keeps it first.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    # References, so that no address is reused.
    seen: dict[int, Tensor] = {}
    kept: Counter[str] = Counter()
    part = "stem"

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object) -> None:
            nonlocal part
            part = name

        return hook

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor
            kept[part] += storage.nbytes()
        return tensor

    parts = [(n, m) for n, m in model.named_children() if n.startswith("layer")]
    parts.append(("head", model.get_submodule("global_pool")))
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in parts]
    try:
        with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return dict(kept)
