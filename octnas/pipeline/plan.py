"""``octnas plan``: an estimate of a whole run, from a few timed steps. Writes nothing."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from octnas.config import RunConfig
from octnas.data.digits import CLASSES
from octnas.data.image_list import PARTS, read_images, read_summary
from octnas.data.prepare import cache_resolution
from octnas.data.settings import DigitsSettings, ImagesSettings
from octnas.data.sources import list_images
from octnas.data.splits import choose_subset
from octnas.device import choose_device
from octnas.errors import DataError, require
from octnas.measure.latency import machine_name
from octnas.pipeline.estimate import (
    ImageCounts,
    Machine,
    Measured,
    Plan,
    StageNeeds,
    supernet_threads,
)
from octnas.pipeline.fingerprints import fingerprint, whole_run
from octnas.pipeline.original import called, like_retraining
from octnas.pipeline.pace import (
    WARM_UP,
    RandomImages,
    decoding_pace,
    evaluation_pace,
    supernet_pace,
    training_pace,
)
from octnas.pipeline.run import default_directory, load_experiment
from octnas.pipeline.space import read_table, space_of
from octnas.report.style import format_count
from octnas.results.networks import UNIFORM, baseline
from octnas.runtime.directory import RunDirectory
from octnas.space.budgets import check_budgets, costs_of
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace


def plan_run(
    experiment: Path,
    overrides: tuple[str, ...] = (),
    *,
    run_dir: Path | None = None,
    steps: int = 10,
) -> Plan:
    """Time a few steps of an experiment, on random images, and estimate its needs.

    Args:
        experiment, overrides, run_dir: see `octnas.pipeline.run.open_run`; finished stages are
            taken into account.
        steps: timed steps of each kind.

    Raises:
        ConfigError: a mistake in the file.
        RunDirectoryError: not a run directory, or one with stages of other settings.
        DataError: the images cannot be found.
        SettingError: fewer than 2 steps, or an unavailable device.
        BudgetError: a budget that no architecture meets.
    """
    require(steps >= 2, "steps", steps, "2 or more")
    _, config = load_experiment(experiment, overrides)
    directory = RunDirectory(run_dir or default_directory(experiment, config))
    for stage in whole_run(config):
        if stage not in ("export", "report"):
            directory.check(stage, fingerprint(config, stage))
    measured = _measure(config, directory, steps)

    def done(stage: StageNeeds) -> StageNeeds:
        finished = directory.finished(stage.stage) is not None
        return StageNeeds(stage=stage.stage, disk=stage.disk, done=True) if finished else stage

    return Plan(
        config.name,
        measured.machine,
        measured.images.parts,
        measured.images.counted,
        tuple(map(done, measured.all_needs())),
        measured.timed,
        tuple(_notes(measured)),
        _original(measured),
    )


def _original(measured: Measured) -> str:
    """What is done with the network that the run begins with."""
    config, macs = measured.config, format_count(measured.space.vanilla_macs)
    if not config.has_original:
        return ""
    found = ", trained first" if config.trains_original else f", {config.space.weights}"
    teaches = ", teaches all networks" * _is_taught(config)
    return f"{called(config)}{found}: {macs} MACs; is sorted{teaches}, and is evaluated on val once"


def _is_taught(config: RunConfig) -> bool:
    return config.begins_with("retrain") and config.retrain.distillation is not None


def _measure(config: RunConfig, directory: RunDirectory, steps: int) -> Measured:
    device, counts = choose_device(config.device), count_images(config, directory)
    space = space_of(config, counts.classes)
    budgets = _budgets(config, space)
    middle = sorted(budgets, key=lambda budget: budget.max_macs)[len(budgets) // 2]
    classes = tuple(map(str, range(int(space.backbone_args["num_classes"]))))
    images = RandomImages(classes, space.input_size, WARM_UP + steps, counts.parts)
    network = baseline(space, UNIFORM, middle, 0).architecture
    vanilla = space.vanilla
    machine = Machine(device.type, machine_name(str(device)), len(os.sched_getaffinity(0)))
    alphas = {site.name: network.alphas[site.name] for site in space.searchable}
    # First, since it needs the least memory: a process seldom gives memory back.
    evaluation = evaluation_pace(config, space, alphas, images, device)
    threads = supernet_threads(config, machine)
    teacher, own = space.vanilla if _is_taught(config) else None, None
    if config.original is not None and config.trains_original:
        own = training_pace(like_retraining(config.original), vanilla, images, device)
    return Measured(
        config,
        space,
        {budget.name: budget.max_macs for budget in budgets},
        counts,
        machine,
        space.cost(network).macs,
        searched=training_pace(config.retrain, network, images, device, teacher),
        vanilla=training_pace(config.retrain, vanilla, images, device, teacher),
        original=own,
        supernet=None
        if config.scores_converted
        else supernet_pace(config, space, images, budgets, device, threads),
        evaluation=evaluation,
    )


def _budgets(config: RunConfig, space: SearchSpace) -> tuple[Budget, ...]:
    path = config.latency.table
    costs = costs_of(space, read_table(Path(path)) if path else None)
    budgets = tuple(entry.resolve(space, costs) for entry in config.space.budgets)
    check_budgets(budgets, CostLevels(space))
    return budgets


def count_images(config: RunConfig, directory: RunDirectory) -> ImageCounts:
    """Count the images: from the finished data stage, the settings, or a listing of the files.

    Raises:
        DataError: no images are found, or too few for the parts.
    """
    data = config.data
    if isinstance(data, DigitsSettings):
        parts = {part: int(getattr(data, f"{part}_images")) for part in PARTS}
        return ImageCounts(parts, len(CLASSES), "the settings")
    if directory.finished("data") is not None:
        folder = directory.stage("data")
        found, about = read_images(folder), read_summary(folder)
        names = [entry.name for entry in found.entries if entry.part in PARTS]
        parts = {part: about.counts[part] for part in PARTS}
        counts = ImageCounts(parts, len(found.classes), "the finished data stage")
        cached = len(found.entries)
    else:
        listing = choose_subset(list_images(data), data.subset, data.seed)
        names = list(listing.names["train"])
        parts = _split(data, len(names), len(listing.names["val"]), len(listing.classes))
        counts = ImageCounts(parts, len(listing.classes), "a listing of the unopened files")
        cached = sum(parts.values())
    cache = cached * 3 * cache_resolution(data, config.space.input_size) ** 2
    return replace(counts, seconds=decoding_pace(data, names), cache=cache)


def _split(settings: ImagesSettings, training: int, val: int, classes: int) -> dict[str, int]:
    """Sizes of the parts if no image is broken or a copy of another."""
    search_val, read = settings.search_val_per_class * classes, settings.read_per_class * classes
    if training <= search_val + read:
        raise DataError(
            f"{settings.root}: found {training:,} training images, allowed: more than "
            f"{search_val + read:,}, which data.search_val_per_class and data.read_per_class take"
        )
    train = training - search_val - read
    return {"train": train, "search_val": search_val, "read": read, "val": val}


def _notes(measured: Measured) -> list[str]:
    """What the estimate leaves out."""
    config, processes = measured.config, measured.config.supernet.processes
    notes = [
        "This is an estimate from a few steps timed here. A busy or hot machine, or a network file "
        "system, takes longer.",
        "Not included: augmentation, since the images were random.",
        "Not included: export, report and MLflow. They take minutes, and about as much disk as the "
        "networks.",
    ]
    supernet = measured.supernet is not None
    if supernet and processes > 1:
        notes.append("Not included: communication between the supernet's processes.")
    if config.retrain.select == "front":
        notes.append("Not included: networks of the front, whose number is unknown.")
    gpus = torch.cuda.device_count()
    if supernet and measured.machine.device == "cuda" and processes > gpus:
        notes.append(f"supernet.processes is {processes}, but this machine has {gpus} GPUs.")
    if isinstance(config.data, ImagesSettings) and not measured.images.seconds:
        notes.append("Not included: decoding of images, whose time is unknown.")
    return notes
