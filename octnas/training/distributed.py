"""Several processes that train one network together, each on its share of every batch.

Torch's DistributedDataParallel averages the gradients. Every weight takes part in every step,
whatever α a process has drawn, so there are no unused parameters to look for.

Batch norms stay local: a step normalises by the statistics of a process's own share of the batch,
since other processes may train other subnets. Running statistics are not averaged either: the
checkpoint and the result hold those of rank 0, and scoring re-estimates them per architecture.
"""

import contextlib
import inspect
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
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
from octnas.device import choose_device
from octnas.errors import TrainingError
from octnas.runtime.signals import Stopped
from octnas.runtime.temporary import environment, level

# Renamed in torch 2.15.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True)
class Processes:
    """The processes of one training, as seen from this one."""

    part: Part = field(default=WHOLE)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and reports."""
        return self.part.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.part.ranks > 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over the processes."""
        if not self.several:
            return model
        # Batch-norm statistics stay local.
        return DistributedDataParallel(model, **{_SYNC_BUFFERS: False})  # type: ignore[arg-type]

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which gradients of a wrapped module are accumulated without averaging.

        The next backward pass outside of it averages the sums.
        """
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def average(self, values: Tensor) -> None:
        """Replace values by their mean over the processes."""
        if self.several:
            dist.all_reduce(values)
            values /= self.part.ranks

    def max(self, number: int) -> int:
        """The largest of the processes' numbers, on all of them."""
        if not self.several:
            return number
        # On the CPU: no need to wait for a GPU.
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all processes."""
        values = [value]
        if self.several:
            dist.broadcast_object_list(values)
        return values[0]


ALONE = Processes()

# NCCL takes no CPU tensors, and the logits of learnable sampling are on the CPU.
BACKEND = {False: "gloo", True: "cpu:gloo,cuda:nccl"}


@contextlib.contextmanager
def joined(device: str, *, rank: int, processes: int, rendezvous: str) -> Iterator[Processes]:
    """Join the process group of a training, and leave it at the end of the block.

    Args:
        device: ``cuda`` for NCCL with a GPU per process, anything else for gloo.
        rank: of this process.
        processes: how many there are.
        rendezvous: path of a file of this training alone, in which they find each other.
    """
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        # A worker of Ray sees its own GPU only; otherwise all processes are on this machine.
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # Gloo would resolve the host name and listen on that address, NCCL on any but loopback. All
    # processes are on this machine unless their launcher has set the interface.
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    # Not a file:// URL, which would end at a # or ? in the path.
    store = dist.FileStore(rendezvous, processes)  # type: ignore[attr-defined]
    dist.init_process_group(BACKEND[cuda], store=store, rank=rank, world_size=processes)
    try:
        yield Processes(Part(rank, processes))
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device of this process within `joined`."""
    device = choose_device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


_LOOPBACK = "127.0.0.1"
_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Seconds for the last step and checkpoint of a stopped process before it is killed. Torch 2.11 has
# no such setting and waits for 30.
_SETTABLE = {setting.name for setting in fields(LaunchConfig)}
_END: Mapping[str, Any] = {"shutdown_timeout": 25} if "shutdown_timeout" in _SETTABLE else {}
# Otherwise the launcher starts a store that listens on all interfaces; a file does as well.
_NO_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def launch(function: Callable[..., None], *args: Any, processes: int, restarts: int) -> None:
    """Call a function in several processes under torch's elastic launcher, and wait for them.

    If one dies, all of them are restarted.

    Args:
        function: module-level; finds its place with `elastic_place`.
        *args: of the function, picklable.
        processes: how many.
        restarts: how often they are restarted at most.

    Raises:
        TrainingError: they failed more often than that; with the first reason.
        Stopped: by a signal, after the processes have written a checkpoint.
    """
    with (
        tempfile.TemporaryDirectory(prefix="octnas-processes-") as folder,
        environment(_NO_STORE),
        _quiet(),
        _signals(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            # A file: any user of the machine could connect to a port.
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
    said = " ".join(str(message).split()).removeprefix("TrainingError: ")
    return (
        f"process {rank} of the training failed ({said[:500]}); the same command resumes from the "
        "last checkpoint"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's log of every restart; each of its modules has a level of its own."""
    with contextlib.ExitStack() as levels:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(_LOGGERS):
                levels.enter_context(level(logging.getLogger(name), logging.CRITICAL))
        yield


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def elastic_place(folder: Path) -> tuple[int, int, str]:
    """Rank, number of processes and rendezvous file of a process under the elastic launcher.

    Not torch's ``env://``, whose store keeps the addresses of dead processes (torch 2.15), at which
    restarted ones would look for each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    rendezvous = str(folder.absolute() / f"rendezvous-{attempt}")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), rendezvous


def exit_with_parent() -> None:
    """End this process as soon as its parent has ended, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_exit(sentinel: int) -> None:
        wait([sentinel])
        # Nobody waits for this process, and results are written whole or not at all.
        os._exit(1)

    threading.Thread(target=wait_and_exit, args=(parent.sentinel,), daemon=True).start()


PROGRESS_FILE = "progress.jsonl"
# Seconds between two reports of a step, and between two reads.
_PAUSE = 0.3


class ProgressWriter:
    """Reports the progress of a training in a file: rows of its history, and now and then a step.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._reported = folder / PROGRESS_FILE, 0.0

    def row(self, row: Mapping[str, float]) -> None:
        """Report an epoch."""
        self._write({"row": dict(row)})

    def step(self, number: int) -> None:
        """Report a step, unless another one was reported just now."""
        if time.monotonic() - self._reported >= _PAUSE:
            self._reported = time.monotonic()
            self._write({"step": number})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def reported(
    folder: Path,
    log: Callable[[Mapping[str, float]], None],
    on_step: Callable[[int], None] = lambda _: None,
) -> Iterator[None]:
    """Within the block, call back from a thread as the `ProgressWriter` of a folder reports.

    Args:
        folder: of the training.
        log: called once with every row of the history; after a restart, rows are reported again.
        on_step: called with the number of a step.

    Raises:
        BaseException: what a callback raised, at the end of the block.
    """
    path = folder / PROGRESS_FILE
    path.unlink(missing_ok=True)
    stop, failures = threading.Event(), list[BaseException]()

    def follow() -> None:
        position, epoch, last = 0, 0.0, False
        while not last:
            last = stop.wait(_PAUSE)
            lines, position = _lines(path, position)
            for line in lines:
                if "step" in line:
                    on_step(line["step"])
                elif line["row"]["epoch"] > epoch:
                    epoch = line["row"]["epoch"]
                    log(line["row"])

    def guarded() -> None:
        try:
            follow()
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def _lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines after a position, and the position after them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        content = b"".join(file.read().rpartition(b"\n")[:2])
    return [json.loads(line) for line in content.splitlines()], position + len(content)
