"""Stage 3: the weight-sharing supernet."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from octnas.data.images import open_images
from octnas.device import choose_device
from octnas.errors import ConfigError
from octnas.nn.supernet import TrainedSupernet
from octnas.nn.weights import save_weights
from octnas.pipeline.opening import Run
from octnas.pipeline.records import begin_tracking
from octnas.run_directory import read_document, reading, write_json
from octnas.settings import flatten
from octnas.training.loop import check_recipe
from octnas.training.scoring import Scorer, make_scorer
from octnas.training.supernet import train_supernet

SCHEMA = 1
KEY = "supernet"
HISTORY_FILE = "history.json"
WEIGHTS_FILE = "weights.safetensors"


def supernet(run: Run) -> None:
    """Train the supernet and write its weights and history."""
    config, folder = run.config, run.directory.stage("supernet")
    device = choose_device(config.device)
    images = open_images(run.data, run.space.input_size, device)
    check_classes(run, len(images.classes))
    for section in ("supernet", "retrain"):
        # Both now: retraining comes hours later.
        with run.settings_of(section, "recipe"):
            check_recipe(getattr(config, section).recipe, images.count("train"))
    begin_tracking(run)
    run.tracker.start(
        KEY, "supernet", params=flatten(config.supernet, KEY), parent="experiment", again=True
    )
    recipe = config.supernet.recipe
    steps = recipe.epochs * len(images.train_batches(recipe.batch_size, config.seed))
    begin = time.perf_counter()
    with run.progress.bar("supernet", steps) as bar:

        def log(row: Mapping[str, float]) -> None:
            bar.advance(0, note=f"epoch {row['epoch']:.0f}, loss {row['train_loss']:.3f}")
            values = {name: row[name] for name in ("train_loss", "lr")}
            run.tracker.metrics(KEY, values, int(row["epoch"]))

        trained, history = train_supernet(
            run.space,
            images,
            config.supernet,
            seed=config.seed,
            device=device,
            log=log,
            on_step=lambda _: bar.advance(),
        )
    seconds = time.perf_counter() - begin
    save_weights(trained, folder / WEIGHTS_FILE)
    write_json(folder / HISTORY_FILE, {"schema": SCHEMA, "epochs": history, "seconds": seconds})
    run.tracker.artifact(KEY, folder / WEIGHTS_FILE)
    run.tracker.finish(KEY)
    run.progress.say(f"supernet: trained, loss {history[-1]['train_loss']:.3f}")


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
