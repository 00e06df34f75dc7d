"""One network that several processes train together, each with its share of every batch."""

import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

from octnas.data.images import Data
from octnas.device import choose_device
from octnas.documents import read_as
from octnas.errors import TrainingError
from octnas.files import remove_tree, write_json
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights, save_weights
from octnas.run_directory import read_json, reading
from octnas.stopping import deferred, raising, stoppable
from octnas.training.fit import Settings, Training, fit, images_for
from octnas.training.loop import Log
from octnas.training.parent import exit_with_parent
from octnas.training.ranks import joined
from octnas.training.together import PROGRESS_FILE, Teller, told

FOLDER = "together"
_WEIGHTS, _HISTORY = "weights.safetensors", "history.json"
# Seconds between two looks at the ranks, and for their last step and checkpoint.
_LOOK, _END = 0.3, 20.0


def fit_together(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    log: Log,
    *,
    ranks: int,
    watch: str,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """As `octnas.training.fit.fit`, by DistributedDataParallel.

    Gradients are averaged; batch norms are each process's own, and the result has those of rank 0
    (see `octnas.training.ranks`).

    Args:
        training, settings, log, watch: see `octnas.training.fit.fit`.
        data: on which.
        device: name of the device.
        ranks: how many processes, each with a GPU of its own where there are any.

    Raises:
        TrainingError: one of them failed; the same call goes on from the last checkpoint.
    """
    folder = (training.folder / FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Another file for every attempt: what those that died have left in it misleads the next.
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    work = partial(_fit_rank, training, data, settings, device, watch, folder)
    try:
        with told(folder, log, lambda _: None), raising():
            _wait(spawn(work, args=(ranks, str(meeting)), nprocs=ranks, join=False))
    except (ProcessRaisedException, ProcessExitedException) as error:
        reason = " ".join(str(error).strip().splitlines()[-1].split())
        raise TrainingError(
            f"a process of the training failed ({reason[:300]}); the same command goes on from the "
            "last checkpoint"
        ) from None
    finally:
        meeting.unlink(missing_ok=True)
    model = build(training.architecture, seed=training.seed)
    load_weights(model, folder / _WEIGHTS)
    with reading(folder / _HISTORY):
        history = read_as(list[dict[str, float]], read_json(folder / _HISTORY))
    remove_tree(folder)
    return model.to(choose_device(device)), history


def _wait(ranks: ProcessContext) -> None:
    """Until all have come to their end; on a signal, until they have written a checkpoint."""
    try:
        with deferred() as asked:
            while not asked() and not _ended(ranks, asked):
                pass
    except KeyboardInterrupt:
        end = time.monotonic() + _END
        for process in ranks.processes:
            process.terminate()
        for process in ranks.processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
        raise


def _ended(ranks: ProcessContext, asked: Callable[[], int]) -> bool:
    """Whether all have come to their end, after a moment."""
    try:
        return bool(ranks.join(_LOOK))
    except (ProcessRaisedException, ProcessExitedException):
        # A terminal signals all processes of a command.
        if asked():
            return True
        raise


def _fit_rank(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    watch: str,
    folder: Path,
    rank: int,
    ranks: int,
    meeting: str,
) -> None:
    """One process; rank 0 writes what came of it."""
    exit_with_parent()
    torch.set_num_threads(settings.threads)
    with (
        stoppable(leave=True),
        joined(device, rank=rank, ranks=ranks, meeting=meeting) as together,
    ):
        place = choose_device(device)
        if place.type == "cuda":
            place = torch.device("cuda", torch.cuda.current_device())
        tell = Teller(folder / PROGRESS_FILE)
        images = images_for(training, data, settings, place)
        model, history = fit(
            training, images, settings, place, tell.row, watch=watch, ranks=together
        )
        if together.first:
            save_weights(model, folder / _WEIGHTS)
            write_json(folder / _HISTORY, history)
