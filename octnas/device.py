"""Devices and threads."""

import contextlib
from collections.abc import Iterator

import torch

from octnas.errors import DeviceError, SettingError


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``"auto"`` is CUDA if available, else the CPU.

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
    """Raise `DeviceError` instead of torch's errors if the device fails or is out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        full = isinstance(error, torch.OutOfMemoryError)
        # The other lines say how to debug kernels.
        reason = " ".join(str(error).splitlines()[0].split())[:300]
        advice = "use smaller batches" if full else "check the device"
        raise DeviceError(
            f"the device {'is out of memory' if full else 'has failed'} ({reason}); {advice}; the "
            "same command resumes from here"
        ) from error


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with ``count`` CPU threads; 0 keeps the present number."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
