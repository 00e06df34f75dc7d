"""Several processes that train one network together, each with its own share of every batch.

Torch's DistributedDataParallel averages the gradients. Every weight takes part in every step,
whatever α the ranks have drawn, so that nothing has to look for unused parameters.

Batch norms are the ranks' own: a step normalises by the statistics of the rank's share of the
batch, since those of ranks that train other subnets are of other distributions. Running statistics
are not averaged either: the checkpoint and the result hold those of rank 0, and scoring estimates
them anew for every architecture.

Starting ranks on this machine, under torch's elastic launcher.

Processes that end with the one that started them, however that ends.
"""

import contextlib
import inspect
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from octnas.data.batches import WHOLE, Part
from octnas.errors import TrainingError
from octnas.runtime.signals import Stopped
from octnas.runtime.temporary import environment, level

# Torch 2.15 has given it another name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default.

    Attributes:
        part: its number, and how many there are.
    """

    part: Part = field(default=WHOLE)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.part.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over the ranks."""
        if self.part.ranks == 1:
            return model
        # Statistics of batch norms stay the ranks' own.
        return DistributedDataParallel(model, **{_SYNC_BUFFERS: False})  # type: ignore[arg-type]

    def alone(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, gradients of a wrapped module are summed up on each rank, not averaged.

        The next backward pass outside of it averages the sums.
        """
        if isinstance(model, DistributedDataParallel):
            within: AbstractContextManager[None] = model.no_sync()
            return within
        return contextlib.nullcontext()

    def average(self, values: Tensor) -> None:
        """Replace values by their mean over the ranks."""
        if self.part.ranks > 1:
            dist.all_reduce(values)
            values /= self.part.ranks

    def any(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        if self.part.ranks == 1:
            return number
        # On the CPU, so that no GPU is waited for.
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.part.ranks == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()

# NCCL takes no tensor of the CPU, and the logits of learnable sampling are there.
BACKEND = {False: "gloo", True: "cpu:gloo,cuda:nccl"}


@contextlib.contextmanager
def joined(device: str, *, rank: int, ranks: int, meeting: str) -> Iterator[Ranks]:
    """Meet the other processes, and leave them at the end.

    Args:
        device: ``cuda`` for NCCL, a GPU for each rank; otherwise gloo.
        rank, ranks: this process among all.
        meeting: path of a file of their own, in which they find each other.
    """
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        # A rank of Ray sees its own GPU alone, or all ranks are on this machine.
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # Gloo would look the machine's name up and listen on that address, NCCL on any but this one.
    # Unless who starts the ranks says otherwise, all of them are on this machine.
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    # Not as a URL, which would end at a # or ? in the name of a folder.
    store = dist.FileStore(meeting, ranks)  # type: ignore[attr-defined]
    dist.init_process_group(BACKEND[cuda], store=store, rank=rank, world_size=ranks)
    try:
        yield Ranks(Part(rank, ranks))
    finally:
        dist.destroy_process_group()


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


def exit_with_parent() -> None:
    """From now on end this process when its parent does."""
    threading.Thread(target=_wait_and_exit, daemon=True).start()


def _wait_and_exit() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    # A killed parent cannot wait for anything, and results are written whole or not at all.
    os._exit(1)
