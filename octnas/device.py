"""Devices and threads."""

import contextlib
from collections.abc import Iterator

import torch

from octnas.errors import DeviceError, SettingError


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        SettingError: torch does not know the name, or the machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError("device", name, f"auto, cpu or a CUDA device here ({reason})") from None
    return device


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Turn what a device that has failed or is full raises into one clear error.

    Raises:
        DeviceError: nothing more can be computed by this process, or memory was too small.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        full = isinstance(error, torch.OutOfMemoryError)
        # The first line says what; the others how to debug kernels.
        reason = " ".join(str(error).splitlines()[0].split())[:300]
        advice = "smaller batches need less" if full else "look after the device"
        raise DeviceError(
            f"the device {'is out of memory' if full else 'has failed'} ({reason}); {advice}, and "
            "the same command goes on from here"
        ) from error


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads; 0 leaves the number as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
