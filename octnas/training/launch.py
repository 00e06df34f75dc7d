"""Starting ranks on this machine, under torch's elastic launcher."""

import contextlib
import logging
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from octnas.errors import TrainingError
from octnas.stopping import Stopped
from octnas.temporary import environment, level

_LOOPBACK = "127.0.0.1"
_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Seconds for the ranks' last step and checkpoint, behind which they are killed. Torch 2.11 knows no
# such setting and gives them 30.
_SETTABLE = {setting.name for setting in fields(LaunchConfig)}
_END: Mapping[str, Any] = {"shutdown_timeout": 25} if "shutdown_timeout" in _SETTABLE else {}
# Else the launcher would start a store for the ranks, which listens on all interfaces; they have a
# file.
_NO_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


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
    with (
        tempfile.TemporaryDirectory(prefix="octnas-ranks-") as folder,
        environment(_NO_STORE),
        _quiet(),
        _signals(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            # A file, where a port would be everybody's.
            rdzv_endpoint=str(Path(folder) / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr=_LOOPBACK,
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **_END,
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
    with contextlib.ExitStack() as levels:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(_LOGGERS):
                levels.enter_context(level(logging.getLogger(name), logging.CRITICAL))
        yield


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The launcher replaces these handlers."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
