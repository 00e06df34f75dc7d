"""Stage 3 of a run that trains the network itself that it begins with: the network at α = 0."""

from collections.abc import Mapping
from pathlib import Path

import torch

from octnas.config import RunConfig
from octnas.data.images import open_images
from octnas.device import choose_device
from octnas.errors import ConfigError
from octnas.io.files import read_json
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.run import Run
from octnas.pipeline.space import check_classes
from octnas.results.networks import SeedResult
from octnas.runtime.directory import ORIGINAL
from octnas.settings import flatten
from octnas.training.loop import check_recipe
from octnas.training.settings import OriginalSettings, RetrainSettings
from octnas.training.standalone import RESULT_FILE, WEIGHTS_FILE, Training, train_one, unfinished


def trained_weights(run: Run) -> Path:
    """The weights that the stage wrote, a state dict with timm's keys."""
    return _folder(run) / WEIGHTS_FILE


def called(config: RunConfig) -> str:
    """What the network that a run begins with is called, for people."""
    return "the original" if config.trains_original else "your network"


def read_seconds(run: Run) -> float:
    """Seconds of training."""
    return read_json(_folder(run) / RESULT_FILE, SeedResult).metrics["seconds"]


def original(run: Run) -> None:
    """Train the network at α = 0, or resume its training.

    Raises:
        ConfigError: the settings give nothing to train, or timm does not know something in a
            recipe.
    """
    settings = run.config.original
    if settings is None or not run.config.trains_original:
        raise ConfigError(
            "original: found nothing to train, allowed: a section original, and no space.weights"
        )
    images = open_images(run.data, run.space.input_size)
    check_classes(run, len(images.classes))
    for section, recipe in (("original", settings.recipe), ("retrain", run.config.retrain.recipe)):
        # Both now, since retraining comes later.
        with run.settings_of(section, "recipe"):
            check_recipe(recipe, images.count("train"))
    with run.settings_of():
        choose_device(run.config.device)
    begin_tracking(run)
    params, new = flatten(settings, ORIGINAL), run.directory.marker(ORIGINAL) is None
    run.tracker.start(ORIGINAL, ORIGINAL, params=params, parent=PARENT, again=new)
    run.directory.begin(ORIGINAL, run.fingerprint(ORIGINAL))
    training = Training(run.space.vanilla, settings.seed, _folder(run), part="read")
    with run.progress.bar(ORIGINAL, settings.recipe.epochs) as bar:

        def log(row: Mapping[str, float]) -> None:
            bar.advance(note=f"loss {row['train_loss']:.3f}")
            values = {name: row[name] for name in ("train_loss", "lr")}
            run.tracker.metrics(ORIGINAL, values, int(row["epoch"]))

        for one in unfinished([training]):
            train_one(one, run.data, like_retraining(settings), run.config.device, log)
    found = read_json(training.folder / RESULT_FILE, SeedResult).metrics
    run.tracker.metrics(ORIGINAL, found, settings.recipe.epochs)
    run.tracker.finish(ORIGINAL)
    run.progress.say(f"original: trained, {found['read_top1']:.1%} top-1 on read")


def like_retraining(settings: OriginalSettings) -> RetrainSettings:
    """The settings of a training of any network."""
    return RetrainSettings(
        threads=settings.threads or torch.get_num_threads(),
        processes=settings.processes,
        recipe=settings.recipe,
    )


def _folder(run: Run) -> Path:
    return run.directory.path.resolve() / ORIGINAL
