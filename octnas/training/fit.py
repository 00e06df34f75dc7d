"""The weights of one fixed architecture: what to train, and the training itself."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from octnas.architecture import Architecture
from octnas.data.images import Data, Images, open_images
from octnas.device import cpu_threads
from octnas.nn.supernet import TrainedSupernet, build, subnet
from octnas.results import SeedResult
from octnas.run_directory import read_json, reading
from octnas.training.checkpoint import Checkpoints
from octnas.training.evaluate import judge
from octnas.training.loop import Log, train
from octnas.training.ranks import ALONE, Ranks
from octnas.training.retrain_settings import RetrainSettings
from octnas.training.settings import ProxySettings, RankingSettings

RESULT_FILE = "result.json"
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"

Settings = RetrainSettings | RankingSettings | ProxySettings


def training_folder(stage: Path, identity: str, seed: int) -> Path:
    """Where a training is kept that its stage repeats with several seeds.

    Args:
        stage: the stage's folder.
        identity: of the architecture.
        seed: of the training.
    """
    return stage / identity / f"seed-{seed}"


@dataclass(frozen=True)
class Training:
    """One network to train with one seed, and where its results go.

    Attributes:
        architecture: what to train.
        seed: of initialisation, data order and augmentation.
        folder: where weights and result are written.
        part: of the data, on which the trained network is judged.
        begin: the supernet whose weights it begins with; None to begin from scratch.
        looks: a file that gets a line before every look at that part; None for no such count.
    """

    architecture: Architecture
    seed: int
    folder: Path
    part: str = "val"
    begin: TrainedSupernet | None = None
    looks: Path | None = None

    @property
    def result(self) -> SeedResult | None:
        """What is on disk; None while the training is not finished."""
        path = self.folder / RESULT_FILE
        if not path.exists():
            return None
        with reading(path):
            return SeedResult.from_dict(read_json(path))

    def checkpoints(self, seconds: float = 0.0) -> Checkpoints:
        """From which it goes on if it was broken off."""
        return Checkpoints(self.folder / CHECKPOINTS_FOLDER, seconds)


def fit(
    training: Training,
    images: Images,
    settings: Settings,
    device: torch.device,
    log: Log,
    *,
    watch: str = "",
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train one network, going on if it was broken off; the network and its history.

    Args:
        training: what to train.
        images: see `images_for`.
        settings: recipe and threads.
        device: where to train.
        log: called after every epoch.
        watch: a part of the data on which the network is tried after every epoch, before that
            call; empty for none. Epochs of an attempt that was broken off are not tried again.
        ranks: this process among those that train the same network.
    """
    begun = time.time()
    if training.begin is None:
        model = build(training.architecture, seed=training.seed)
    else:
        model = subnet(training.begin.load(), training.architecture)

    def tell(row: Mapping[str, float]) -> None:
        if watch and row["time"] > begun:
            tried = judge(model, images.batches(watch, settings.recipe.batch_size * 4), device)
            row = {**row, f"{watch}_top1": tried.metrics["top1"]}
        log(row)

    with cpu_threads(settings.threads):
        history = train(
            model,
            images.train_batches(settings.recipe.batch_size, training.seed, ranks.part),
            settings.recipe,
            device=device,
            seed=training.seed,
            ranks=ranks,
            checkpoints=training.checkpoints(settings.recipe.checkpoint_seconds),
            log=tell if ranks.first else None,
        )
    return model, history


def images_for(training: Training, data: Data, settings: Settings, device: torch.device) -> Images:
    """The images of a training, at its size and with its augmentation."""
    if (augment := getattr(settings, "augment", None)) is not None:
        data = replace(data, settings=replace(data.settings, augment=augment))
    return open_images(data, training.architecture.input_size, device)
