"""Starting ranks on this machine, under torch's elastic launcher."""

import contextlib
import logging
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from octnas.errors import TrainingError
from octnas.stopping import Stopped

_LOOPBACK = "127.0.0.1"
_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Seconds for the ranks' last step and checkpoint, behind which they are killed.
_END = 25


def launch(function: Callable[..., None], *args: Any, workers: int, restarts: int) -> None:
    """Call a function in several processes, and wait for them.

    If one dies, the others are ended and all are started again.

    Args:
        function: of a module, called with ``args`` in every process; torch's ``RANK`` and
            ``WORLD_SIZE`` are in the environment.
        *args: picklable.
        workers: how many processes.
        restarts: how often they are started again.

    Raises:
        TrainingError: they died more often than that; with the reason of the first.
        Stopped: a signal, when the ranks have written a checkpoint and ended.
    """
    with tempfile.TemporaryDirectory(prefix="octnas-ranks-") as folder, _quiet(), _signals():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{_LOOPBACK}:0",
            local_addr=_LOOPBACK,
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=_END,
        )
        try:
            elastic_launch(config, function)(*args)
        except ChildFailedError as error:
            raise TrainingError(_reason(error)) from None
        except SignalException as error:
            raise Stopped(error.sigval) from None


def _reason(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    # Behind the type stands what it said.
    said = " ".join(str(message).split()).removeprefix("TrainingError: ")
    return (
        f"rank {rank} of the training failed ({said[:500]}); the same command goes on from the "
        "last checkpoint"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of every restart; each of its modules has a level of its own."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The launcher replaces these handlers."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
