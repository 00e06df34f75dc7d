"""Processes that end with the one that started them, however that ends."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def exit_with_parent() -> None:
    """From now on end this process when its parent does."""
    threading.Thread(target=_wait_and_exit, daemon=True).start()


def _wait_and_exit() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    # A killed parent cannot wait for anything, and results are written whole or not at all.
    os._exit(1)
