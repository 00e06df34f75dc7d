"""Stage 3: the weight-sharing supernet."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from octnas.data.images import Images, open_images
from octnas.device import choose_device
from octnas.errors import ConfigError, require
from octnas.nn.supernet import TrainedSupernet
from octnas.nn.weights import save_weights
from octnas.pipeline.learned import write_distributions
from octnas.pipeline.opening import Run
from octnas.pipeline.records import begin_tracking
from octnas.run_directory import read_document, reading, write_json
from octnas.settings import flatten
from octnas.training.checkpoint import Checkpoints
from octnas.training.loop import check_recipe
from octnas.training.sampled import architecture_draw
from octnas.training.scoring import Scorer, make_scorer
from octnas.training.supernet import train_supernet

SCHEMA = 1
KEY = "supernet"
HISTORY_FILE = "history.json"
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"


def supernet(run: Run) -> None:
    """Train the supernet and write its weights and history; it goes on if it was broken off."""
    config, folder = run.config, run.directory.stage("supernet")
    device = choose_device(config.device)
    images = open_images(run.data, run.space.input_size, device)
    check_classes(run, len(images.classes))
    for section in ("supernet", "retrain"):
        # Both now: retraining comes hours later.
        with run.settings_of(section, "recipe"):
            check_recipe(getattr(config, section).recipe, images.count("train"))
    with run.settings_of("supernet"):
        weights = config.supernet.weights
        fits = not weights or config.space.stride_mode == "timm"
        require(fits, "weights", weights, "empty, or with space.stride_mode: timm")
    # A range of MACs without architectures is refused before anything is there to go on with.
    architecture_draw(run.space, config.supernet, config.seed)
    anew = run.directory.marker("supernet") is None
    run.directory.begin("supernet", run.fingerprint("supernet"))
    begin_tracking(run)
    params = flatten(config.supernet, KEY)
    run.tracker.start(KEY, "supernet", params=params, parent="experiment", again=anew)
    trained, history = _train(run, images, device)
    save_weights(trained, folder / WEIGHTS_FILE)
    seconds = history[-1]["seconds"]
    write_json(folder / HISTORY_FILE, {"schema": SCHEMA, "epochs": history, "seconds": seconds})
    run.tracker.artifact(KEY, folder / WEIGHTS_FILE)
    run.tracker.finish(KEY)
    _checkpoints(run).remove()
    run.progress.say(f"supernet: trained, loss {history[-1]['train_loss']:.3f}")


def _train(
    run: Run, images: Images, device: torch.device
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The supernet and its history, with a bar that counts steps."""
    config, recipe, done = run.config, run.config.supernet.recipe, 0
    steps = recipe.epochs * len(images.train_batches(recipe.batch_size, config.seed))
    with run.progress.bar("supernet", steps) as bar:

        def log(row: Mapping[str, float]) -> None:
            bar.advance(0, note=f"epoch {row['epoch']:.0f}, loss {row['train_loss']:.3f}")
            values = {name: row[name] for name in ("train_loss", "lr")}
            run.tracker.metrics_once(KEY, values, int(row["epoch"]))

        def on_step(number: int) -> None:
            nonlocal done
            # A training that goes on begins with a later step.
            bar.advance(number + 1 - done)
            done = number + 1

        return train_supernet(
            run.space,
            images,
            config.supernet,
            seed=config.seed,
            device=device,
            checkpoints=_checkpoints(run),
            log=log,
            on_step=on_step,
            budgets=run.budgets,
            on_learned=partial(write_distributions, run),
        )


def _checkpoints(run: Run) -> Checkpoints:
    folder = run.directory.stage("supernet") / CHECKPOINTS_FOLDER
    return Checkpoints(folder, run.config.supernet.recipe.checkpoint_seconds)


def read_seconds(run: Run) -> float:
    """How long the supernet was trained."""
    path = run.directory.stage("supernet") / HISTORY_FILE
    with reading(path):
        return float(read_document(path, SCHEMA, "seconds")["seconds"])


def trained_supernet(run: Run) -> TrainedSupernet:
    """The supernet that the stage has written."""
    path = (run.directory.stage("supernet") / WEIGHTS_FILE).resolve()
    return TrainedSupernet(run.space, path, run.config.supernet.by_role)


def scorer(run: Run, part: str) -> Callable[[], Scorer]:
    """A picklable function that makes a scorer in any process."""
    settings = run.config.search
    return partial(
        make_scorer,
        trained_supernet(run),
        run.data,
        part,
        calibration_batches=settings.calibration_batches,
        batch_size=settings.images_per_batch,
        device=run.config.device,
        threads=settings.threads,
    )


def check_classes(run: Run, classes: int) -> None:
    """Refuse a classifier that does not fit the data.

    Raises:
        ConfigError: naming both numbers.
    """
    given = run.space.backbone_args.get("num_classes")
    if given != classes:
        raise ConfigError(
            f"space.backbone_args.num_classes: found {given}, but the data has {classes} classes; "
            "leave it out to take the data's"
        )
