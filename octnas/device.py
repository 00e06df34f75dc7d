"""Devices and threads."""

import contextlib
from collections.abc import Iterator

import torch

from octnas.errors import SettingError


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
def cpu_threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads; 0 leaves the number as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
