"""Inference engines of other makers, as far as a process may hold them once only."""

from functools import cache
from typing import Any


@cache
def openvino_core() -> Any:
    """The process's only one, which is never let go.

    Each `openvino.Core` moves the stack of the signal handlers, and two that are let go oldest
    first leave it on memory that is gone: the next Ctrl-C is a segmentation fault (2026.4).
    """
    import openvino

    return openvino.Core()
