"""Stage 3: the weight-sharing supernet, and what a learnable one has learned besides weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from octnas.data.batches import Part
from octnas.data.images import Images, open_images
from octnas.device import choose_device
from octnas.errors import require
from octnas.io.files import read_json, remove_tree, write_json
from octnas.nn.supernet import ConvertedNetwork, TrainedSupernet
from octnas.nn.weights import save_weights
from octnas.pipeline.convert import sorted_weights
from octnas.pipeline.records import PARENT, begin_tracking
from octnas.pipeline.run import Run
from octnas.pipeline.space import check_classes
from octnas.search.samplers import Propose
from octnas.settings import flatten
from octnas.space.distribution import Distribution, Probabilities, draw_within
from octnas.training.checkpoint import Checkpoints
from octnas.training.distributed import launch, reported
from octnas.training.loop import Log, check_recipe
from octnas.training.scoring import Measure, Scorer, make_scorer
from octnas.training.settings import SupernetSettings
from octnas.training.standalone import CHECKPOINTS_FOLDER, WEIGHTS_FILE
from octnas.training.supernet import (
    SupernetJob,
    check_supernet,
    read_result,
    train_elastic_rank,
    train_rank,
    train_supernet,
)

KEY = "supernet"
HISTORY_FILE = "history.json"
TOGETHER_FOLDER = "together"
SCHEMA = 1
LEARNED_SCHEMA = 1
DISTRIBUTION_FILE = "distribution.json"


def write_distributions(run: Run, probabilities: Mapping[str, Probabilities]) -> None:
    """Write ``supernet/distribution.json`` from probabilities by budget; reports expected MACs."""
    found = [Distribution.of(run.levels, b, probabilities[b.name]) for b in run.budgets]
    choices = {site.name: list(site.choices) for site in run.space.searchable}
    document = {
        "schema": LEARNED_SCHEMA,
        "choices": choices,
        "budgets": [distribution.to_dict() for distribution in found],
    }
    path = run.directory.stage("supernet") / DISTRIBUTION_FILE
    write_json(path, document)
    run.tracker.artifact("supernet", path)
    for budget, distribution in zip(run.budgets, found, strict=True):
        off = distribution.expected_macs / budget.max_macs - 1
        run.progress.say(
            f"  {budget.name}: expected MACs {off:+.2%} off the budget; most probable architecture "
            f"within it: {distribution.macs / 1e6:,.3f} M MACs"
        )


def read_distributions(run: Run) -> tuple[Distribution, ...]:
    """Read what `write_distributions` wrote, by budget; empty unless sampling is learnable."""
    if run.config.supernet.sampling != "learnable" or run.config.scores_converted:
        return ()
    path = run.directory.stage("supernet") / DISTRIBUTION_FILE
    return read_json(path, tuple[Distribution, ...], schema=LEARNED_SCHEMA, key="budgets")


def learned_proposals(run: Run) -> Propose:
    """Draws that alternate between the budgets and depend on seed and number only."""
    found, budgets, seed = read_distributions(run), run.budgets, run.config.seed

    def propose(number: int, *_: object) -> dict[str, float]:
        index = number % len(budgets)
        rng = np.random.default_rng((seed, number))
        return draw_within(run.space, found[index], budgets[index], rng)

    return propose


def supernet(run: Run) -> None:
    """Train the supernet, or resume its training, and write its weights and history."""
    config, folder = run.config, run.directory.stage("supernet")
    device = choose_device(config.device)
    images = open_images(run.data, run.space.input_size, device)
    check_classes(run, len(images.classes))
    for section in ("supernet", "retrain"):
        # Both now, since retraining comes hours later.
        with run.settings_of(section, "recipe"):
            check_recipe(getattr(config, section).recipe, images.count("train"))
    with run.settings_of("supernet", "recipe"):
        Part(0, config.supernet.processes).check(config.supernet.recipe.batch_size)
    with run.settings_of("supernet"):
        weights = config.supernet.weights
        fits = not weights or config.space.stride_mode == "timm"
        require(fits, "weights", weights, "empty, or with space.stride_mode: timm")
        anywhere = config.supernet.executor == "ray" and bool(config.ray.address)
        if not anywhere:
            check_processes(config.supernet.processes, device)
    with run.settings_of("ray"):
        shared = device.type == "cuda" and config.supernet.processes > 1 and config.ray.gpus < 1
        allowed = "1 or more with supernet.processes > 1: each process needs a GPU of its own"
        require(not (anywhere and shared), "gpus", config.ray.gpus, allowed)
    begin_tracking(run)
    params, new = flatten(config.supernet, KEY), run.directory.marker("supernet") is None
    run.tracker.start(KEY, "supernet", params=params, parent=PARENT, again=new)
    if new:
        # Leftovers of an interrupted removal, perhaps of other settings.
        _checkpoints(run).remove()
    if new or not _is_trained(folder):
        with run.settings_of("supernet"):
            history = _train(run, images, device)
        seconds = history[-1]["seconds"]
        document = {"schema": SCHEMA, "epochs": history, "seconds": seconds}
        write_json(folder / HISTORY_FILE, document)
        run.progress.say(f"supernet: trained, loss {history[-1]['train_loss']:.3f}")
    run.tracker.artifact(KEY, folder / WEIGHTS_FILE)
    run.tracker.finish(KEY)
    _checkpoints(run).remove()


def _is_trained(folder: Path) -> bool:
    """Whether a resumed stage has written everything; its checkpoints may be removed by then."""
    return all((folder / name).exists() for name in (HISTORY_FILE, WEIGHTS_FILE))


def _train(run: Run, images: Images, device: torch.device) -> list[dict[str, float]]:
    """Train, write the weights and return the history."""
    config, recipe, done = run.config, run.config.supernet.recipe, 0
    settings = _settings(run)
    steps = recipe.epochs * len(images.train_batches(recipe.batch_size, config.seed))
    with run.progress.bar("supernet", steps) as bar:

        def log(row: Mapping[str, float]) -> None:
            bar.advance(0, note=f"epoch {row['epoch']:.0f}, loss {row['train_loss']:.3f}")
            values = {name: row[name] for name in ("train_loss", "lr")}
            run.tracker.metrics(KEY, values, int(row["epoch"]))

        def on_step(number: int) -> None:
            nonlocal done
            if not done:
                # Not before, so that invalid settings can be corrected without --fresh.
                _begin(run)
            # A resumed training begins with a later step.
            bar.advance(number + 1 - done)
            done = number + 1

        if config.supernet.processes > 1:
            # Here, since failing processes would be restarted.
            check_supernet(run.space, settings)
            # Now, since their progress arrives later than their first checkpoint.
            _begin(run)
            history = _train_together(run, log, on_step)
            on_step(steps - 1)
            return history
        trained, history = train_supernet(
            run.space,
            images,
            settings,
            seed=config.seed,
            device=device,
            checkpoints=_checkpoints(run),
            log=log,
            on_step=on_step,
            budgets=run.budgets,
            on_learned=partial(write_distributions, run),
            rescaled=config.rescales,
        )
        save_weights(trained, run.directory.stage("supernet") / WEIGHTS_FILE)
        return history


def _settings(run: Run) -> SupernetSettings:
    """The settings with the teacher and, if the run begins with a trained network, its weights."""
    config = run.config
    settings = replace(config.supernet, teacher=config.teacher)  # type: ignore[arg-type]
    return replace(settings, weights=str(sorted_weights(run))) if config.has_original else settings


def _begin(run: Run) -> None:
    run.directory.begin("supernet", run.fingerprint("supernet"))


def _train_together(run: Run, log: Log, on_step: Callable[[int], None]) -> list[dict[str, float]]:
    """Train in several processes."""
    settings, folder = _settings(run), _folder(run)
    job = SupernetJob(
        run.space,
        run.budgets,
        run.data,
        settings,
        run.config.seed,
        run.config.device,
        folder / WEIGHTS_FILE,
        _checkpoints(run),
        folder / TOGETHER_FOLDER,
        run.config.rescales,
    )
    with reported(job.folder, log, on_step):
        if settings.executor == "local":
            launch(
                train_elastic_rank, job, processes=settings.processes, restarts=settings.restarts
            )
        else:
            _train_with_ray(run, job)
    result = read_result(job)
    if result.learned is not None:
        write_distributions(run, result.learned)
    remove_tree(job.folder)
    return result.history


def _train_with_ray(run: Run, job: SupernetJob) -> None:
    from octnas.cluster.ranks import run_ranks
    from octnas.cluster.signals import forwarding_signals
    from octnas.cluster.start import ray_cluster

    workers, ray = job.settings.processes, run.config.ray
    with ray_cluster(workers, ray), forwarding_signals(run.directory.path) as stops:
        run_ranks(
            stops.reach(train_rank),
            job,
            workers=workers,
            restarts=job.settings.restarts,
            folder=job.folder,
            gpus=ray.gpus,
        )


def _checkpoints(run: Run) -> Checkpoints:
    seconds = run.config.supernet.recipe.checkpoint_seconds
    return Checkpoints(_folder(run) / CHECKPOINTS_FOLDER, seconds)


def _folder(run: Run) -> Path:
    """The stage's folder as an absolute path, for processes on other machines.

    Links within the run directory are not resolved, so that removing one keeps its target.
    """
    return run.directory.path.resolve() / "supernet"


def read_seconds(run: Run) -> float:
    """Seconds of training."""
    path = run.directory.stage("supernet") / HISTORY_FILE
    return read_json(path, float, schema=SCHEMA, key="seconds")


def trained_supernet(run: Run) -> TrainedSupernet:
    """The supernet that the stage wrote."""
    path = (run.directory.stage("supernet") / WEIGHTS_FILE).resolve()
    return TrainedSupernet(run.space, path, run.config.supernet.switchable, run.config.rescales)


def scorer(
    run: Run, part: str, first: float = 1.0, measure: Measure | None = None
) -> Callable[[], Scorer]:
    """A picklable function that makes a scorer in any process.

    Args:
        run: with the data and the settings of the search.
        part: of the data.
        first: share of the part that is scored before the rest.
        measure: what is measured; by default what the search does.
    """
    config, settings = run.config, run.config.search
    original = ConvertedNetwork(run.space, sorted_weights(run)) if config.has_original else None
    measure = measure or config.measure
    return partial(
        make_scorer,
        original if original and config.scores_converted else trained_supernet(run),
        run.data,
        part,
        calibration_batches=settings.calibration_batches,
        batch_size=settings.images_per_batch,
        device=run.config.device,
        threads=settings.threads,
        first=first,
        original=original if measure == "kl" or settings.steps else None,
        measure=measure,
        steps=settings.steps,
    )


def check_processes(processes: int, device: torch.device) -> None:
    """Refuse more processes than GPUs with a SettingError, as NCCL requires."""
    if device.type == "cuda" and processes > 1:
        gpus = torch.cuda.device_count()
        allowed = f"at most {gpus}, the GPUs of this machine"
        require(processes <= gpus, "processes", processes, allowed)
