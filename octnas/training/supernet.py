"""Training of the weight-sharing supernet.

A supernet that several processes train together, and what they tell the one that waits.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, cpu_threads
from octnas.errors import require
from octnas.io.files import read_json, write_json
from octnas.nn.supernet import build, build_supernet
from octnas.nn.weights import save_weights
from octnas.runtime.signals import stoppable
from octnas.space.costs import Budget
from octnas.space.distribution import Probabilities
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.distributed import ALONE, Ranks, joined
from octnas.training.learnable import LearnableSteps
from octnas.training.loop import Log, Step, train
from octnas.training.sampled import Teacher, architecture_draw, sampling_steps
from octnas.training.settings import SupernetSettings


def train_supernet(
    space: SearchSpace,
    images: Images,
    settings: SupernetSettings,
    *,
    seed: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    on_step: Callable[[int], None] | None = None,
    budgets: Sequence[Budget] = (),
    on_learned: Callable[[Mapping[str, Probabilities]], None] | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a fresh supernet of a search space.

    Args:
        space: what is sampled from.
        images: trained on their training part.
        settings: sampling and recipe.
        seed: of initialisation, data order and sampling.
        device: where to train.
        ranks: this process among those that train together; each trains architectures of its own
            on its share of every batch, of the same MACs where those are drawn first.
        checkpoints: from which the training goes on if it was broken off.
        log: called after every epoch.
        on_step: called with the number of every step, for progress.
        budgets: with ``sampling: learnable``, for each of which a distribution is learned.
        on_learned: called at the end with their probabilities, by the budgets' names.

    Returns:
        The supernet, on ``device``, and its history per epoch.

    Raises:
        SettingError: see `check_supernet`.
    """
    _check_sites(space, settings)
    supernet = build_supernet(
        space, seed=seed, switchable=settings.switchable, weights=settings.weights
    )
    batches = images.train_batches(settings.recipe.batch_size, seed, ranks.part)
    learned, total = None, settings.recipe.epochs * len(batches)
    if settings.sampling == "learnable":
        learned = LearnableSteps(
            supernet,
            space,
            budgets,
            images,
            settings.learnable,
            explore=architecture_draw(space, settings, seed, ranks.part.rank),
            seed=seed,
            steps=total,
        )
    steps = learned or sampling_steps(
        supernet,
        space,
        settings,
        seed=seed,
        steps=total,
        original=_original(space, settings, device),
        rank=ranks.part.rank,
    )

    def backward(step: Step) -> Tensor:
        if on_step is not None:
            on_step(step.number)
        return steps(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            batches,
            settings.recipe,
            device=device,
            seed=seed,
            ranks=ranks,
            backward=backward,
            state=steps if isinstance(steps, Stateful) else None,
            checkpoints=checkpoints,
            log=log,
        )
    if learned is not None and on_learned is not None:
        on_learned(learned.probabilities)
    return supernet, history


def check_supernet(space: SearchSpace, settings: SupernetSettings) -> None:
    """Refuse settings that no training can begin with, for who starts processes that would.

    Args:
        space: what is sampled from.
        settings: sampling, teacher and weights.

    Raises:
        SettingError: no architecture lies in the range of MACs that is to be sampled, the weights
            to begin with cannot be had or cannot teach, or there is nothing to learn.
    """
    _check_sites(space, settings)
    architecture_draw(space, settings, seed=0)
    if settings.weights:
        build_supernet(space, seed=0, switchable=settings.switchable, weights=settings.weights)
    _original(space, settings, torch.device("cpu"))


def _check_sites(space: SearchSpace, settings: SupernetSettings) -> None:
    learns = settings.sampling == "learnable"
    allowed = "another one: no site of this search space has two choices"
    require(not learns or bool(space.searchable), "sampling", settings.sampling, allowed)


def _original(
    space: SearchSpace, settings: SupernetSettings, device: torch.device
) -> Teacher | None:
    """The network that the supernet begins with, as it was, if it is to teach.

    Raises:
        SettingError: its classifier is not that of the weights but a new one.
    """
    if settings.teacher != "original":
        return None
    vanilla = space.architecture({site.name: 0.0 for site in space.sites})
    network, other = (build(vanilla, seed=seed, weights=settings.weights) for seed in (0, 1))
    pairs = zip(network.state_dict().items(), other.state_dict().values(), strict=True)
    new = ", ".join(name for (name, value), again in pairs if not torch.equal(value, again))
    allowed = f"original only with weights for all of the network; the file has no {new}"
    require(not new, "teacher", settings.teacher, allowed)
    network.to(device).eval().requires_grad_(False)

    def teach(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(images)
        return logits.float()

    return teach


PROGRESS_FILE = "progress.jsonl"
RESULT_FILE = "together.json"
# Seconds between two lines of progress, and between two looks at them.
_PAUSE = 0.3


@dataclass(frozen=True)
class SupernetJob:
    """All that each of several processes needs to train a supernet with the others; picklable.

    Attributes:
        space, budgets, data, settings, seed: see `octnas.training.supernet.train_supernet`.
        device: name of the device.
        weights: file that rank 0 writes at the end.
        checkpoints: from which they go on.
        folder: for what rank 0 tells the process that waits.
    """

    space: SearchSpace
    budgets: tuple[Budget, ...]
    data: Data
    settings: SupernetSettings
    seed: int
    device: str
    weights: Path
    checkpoints: Checkpoints
    folder: Path


@dataclass(frozen=True)
class Together:
    """What came of it: the history per epoch, and the distributions that were learned, if any."""

    history: list[dict[str, float]]
    learned: Mapping[str, Probabilities] | None


def train_elastic_rank(job: SupernetJob) -> None:
    """One process under torch's elastic launcher."""
    with stoppable(leave=True):
        train_rank(job, *elastic_place(job.folder))


def elastic_place(folder: Path) -> tuple[int, int, str]:
    """Rank, number of ranks and meeting place of a process under torch's elastic launcher.

    Not torch's ``env://``, whose store keeps the addresses of processes that have died (torch
    2.15), so that those that are started again would look for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    meeting = str(folder.absolute() / f"meeting-{attempt}")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), meeting


def train_rank(job: SupernetJob, rank: int, ranks: int, meeting: str) -> None:
    """Train with the others; rank 0 writes weights, checkpoints, progress and result."""
    threads = job.settings.threads or max(1, (os.cpu_count() or 1) // ranks)
    torch.set_num_threads(threads)
    with joined(job.device, rank=rank, ranks=ranks, meeting=meeting) as together:
        device = choose_device(job.device)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        tell = ProgressWriter(job.folder / PROGRESS_FILE) if together.first else None
        learned: dict[str, Probabilities] = {}
        supernet, history = train_supernet(
            job.space,
            open_images(job.data, job.space.input_size, device),
            job.settings,
            seed=job.seed,
            device=device,
            ranks=together,
            checkpoints=job.checkpoints,
            log=tell.row if tell else None,
            on_step=tell.step if tell else None,
            budgets=job.budgets,
            on_learned=learned.update,
        )
        if together.first:
            save_weights(supernet, job.weights)
            result = {"history": history, "learned": learned or None}
            write_json(job.folder / RESULT_FILE, result)


def read_result(job: SupernetJob) -> Together:
    """What rank 0 has written at the end."""
    return read_json(job.folder / RESULT_FILE, Together)


class ProgressWriter:
    """Lines of progress in a file: the rows of the history, and now and then the step."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._told = path, 0.0

    def row(self, row: Mapping[str, float]) -> None:
        """Tell an epoch."""
        self._write({"row": dict(row)})

    def step(self, number: int) -> None:
        """Tell a step, unless one was told just now."""
        if time.monotonic() - self._told >= _PAUSE:
            self._told = time.monotonic()
            self._write({"step": number})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@contextmanager
def told(
    folder: Path,
    log: Callable[[Mapping[str, float]], None],
    on_step: Callable[[int], None],
) -> Iterator[None]:
    """Call back, in a thread, as rank 0 makes progress.

    Args:
        folder: of what is being trained within the block.
        log: with every row of the history, once.
        on_step: with the number of the step, now and then.
    """
    path = folder / PROGRESS_FILE
    path.unlink(missing_ok=True)
    stop, failures = threading.Event(), list[BaseException]()

    def follow() -> None:
        position, seen = 0, 0
        while True:
            last = stop.is_set()
            lines, position = _lines(path, position)
            for line in lines:
                if "step" in line:
                    on_step(line["step"])
                elif line["row"]["epoch"] > seen:
                    seen = line["row"]["epoch"]
                    log(line["row"])
            if last:
                return
            stop.wait(_PAUSE)

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
    """The whole lines behind a position, and the position behind them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        whole = file.read().rpartition(b"\n")
    content = whole[0] + whole[1]
    return [json.loads(line) for line in content.splitlines()], position + len(content)
