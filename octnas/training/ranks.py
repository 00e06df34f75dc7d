"""Several processes that train one network together, each with its own share of every batch.

Torch's DistributedDataParallel averages the gradients. Every weight takes part in every step,
whatever α the ranks have drawn, so that nothing has to look for unused parameters.

Batch norms are the ranks' own: a step normalises by the statistics of the rank's share of the
batch, since those of ranks that train other subnets are of other distributions. Running statistics
are not averaged either: the checkpoint and the result hold those of rank 0, and scoring estimates
them anew for every architecture.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from octnas.data.order import WHOLE, Part

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
