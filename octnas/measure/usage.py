"""The most memory that a piece of work takes."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


@dataclass
class Usage:
    """Peaks of memory, known once the work is done.

    Attributes:
        memory: of this process in main memory, all that it held before included, in bytes.
        gpu_memory: of torch on the GPU, in bytes; 0 on a CPU.
    """

    memory: int = 0
    gpu_memory: int = 0


@contextmanager
def memory_peak(device: torch.device) -> Iterator[Usage]:
    """Note the most memory that is taken inside.

    Where Linux does not let the process reset its peak, the one since its start is given.
    """
    usage = Usage()
    _reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield usage
    usage.memory = _peak()
    if device.type == "cuda":
        # What torch holds, rather than uses: so much the GPU must have.
        usage.gpu_memory = torch.cuda.max_memory_reserved(device)


def _reset() -> None:
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
