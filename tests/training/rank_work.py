"""Functions that the processes of `test_distributed` import and run."""

import json
import os
import signal
from pathlib import Path

import torch
from torch import Tensor

from octnas.data.batches import Batch
from octnas.data.images import open_images
from octnas.nn.supernet import build_supernet
from octnas.training.distributed import elastic_place, joined
from octnas.training.loop import Step
from octnas.training.sampled import sampling_steps
from octnas.training.supernet import SupernetJob, train_elastic_rank
from tests.network import listening


def first_batch(job: SupernetJob, rank: int, ranks: int) -> Batch:
    from octnas.data.batches import Part

    images = open_images(job.data, job.space.input_size)
    size = job.settings.recipe.batch_size
    return next(images.train_batches(size, job.seed, Part(rank, ranks)).epoch(0))


def gradients_of(job: SupernetJob, folder: Path) -> None:
    """Write the averaged gradients of one backward pass to a file."""
    torch.set_num_threads(1)
    rank, processes, rendezvous = elastic_place(folder)
    with joined("cpu", rank=rank, processes=processes, rendezvous=rendezvous) as together:
        supernet = build_supernet(job.space, seed=job.seed, switchable=True)
        wrapped = together.wrap(supernet)
        backward = sampling_steps(supernet, job.space, job.settings, seed=job.seed, rank=rank)
        images, labels = first_batch(job, rank, processes)
        backward(
            Step(
                0,
                images,
                labels,
                wrapped,
                torch.nn.functional.cross_entropy,
                rank,
                lambda: together.no_sync(wrapped),
                together.average,
            )
        )
        grads: list[Tensor | None] = [p.grad for p in supernet.parameters()]
        torch.save(grads, folder / f"rank-{rank}.pt")


def listens(folder: Path) -> None:
    """Write the addresses on which this process and its launcher listen to a file."""
    rank, processes, rendezvous = elastic_place(folder)
    with joined("cpu", rank=rank, processes=processes, rendezvous=rendezvous) as together:
        found = listening([os.getpid(), os.getppid()])
        assert together.max(rank) == processes - 1
        (folder / f"{rank}.json").write_text(json.dumps(found))


def dies_once(job: SupernetJob) -> None:
    """Kill rank 1 once, as soon as there is a checkpoint to resume from."""
    flag = job.folder / "died"
    if os.environ["RANK"] == "1" and not flag.exists():
        import octnas.training.supernet as module

        real = module.sampling_steps

        def deadly(*args: object, **kwargs: object) -> object:
            steps = real(*args, **kwargs)  # type: ignore[arg-type]

            def backward(step: Step) -> Tensor:
                if step.number >= 4 and any(job.checkpoints.folder.glob("*.checkpoint")):
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return steps(step)

            return backward

        module.sampling_steps = deadly  # type: ignore[assignment]
    train_elastic_rank(job)


def refuses(job: SupernetJob) -> None:
    from octnas.errors import DataError

    raise DataError("no images here")
