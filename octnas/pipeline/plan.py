"""What a whole run will need, from a few steps that are timed here; nothing is written."""

import os
from pathlib import Path

import torch

from octnas.config import RunConfig
from octnas.data.settings import ImagesSettings
from octnas.device import choose_device
from octnas.errors import require
from octnas.measure.latency import machine_name
from octnas.pipeline.estimate import (
    Machine,
    Measured,
    Plan,
    data_work,
    needs,
    retrain_work,
    search_work,
    supernet_threads,
    supernet_work,
    timed,
)
from octnas.pipeline.fingerprints import fingerprint
from octnas.pipeline.pace import (
    WARM_UP,
    RandomImages,
    count_images,
    evaluation_pace,
    supernet_pace,
    training_pace,
)
from octnas.pipeline.run import default_directory, load_experiment
from octnas.pipeline.space import read_table, space_of
from octnas.results.networks import UNIFORM, VANILLA, baseline
from octnas.runtime.directory import RunDirectory
from octnas.space.budgets import check_budgets, costs_of
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace

STEPS = 10


def plan_run(
    experiment: Path,
    overrides: tuple[str, ...] = (),
    *,
    run_dir: Path | None = None,
    steps: int = STEPS,
) -> Plan:
    """Time a few steps of an experiment, and estimate what all of it will need.

    Images are random; their numbers are those of the run directory's data stage, if it is
    finished, or of the settings, or of a list of the files.

    Args:
        experiment: a YAML file, or the directory of an earlier run.
        overrides: ``section.key=value``.
        run_dir: where the run will write; by default ``runs/NAME`` or the run's own.
        steps: of each kind that are timed.

    Raises:
        ConfigError: a mistake in the file.
        RunDirectoryError: a directory that is none of a run, or one that holds stages that were
            made with other settings.
        DataError: the images cannot be found.
        SettingError: fewer than 2 steps, or a device that is not there.
        BudgetError: a budget that no architecture meets.
    """
    require(steps >= 2, "steps", steps, "2 or more")
    _, config = load_experiment(experiment, overrides)
    directory = RunDirectory(run_dir or default_directory(experiment, config))
    measured = _measure(config, directory, steps)
    stages = (data_work, supernet_work, search_work, retrain_work)
    return Plan(
        config.name,
        measured.machine,
        measured.images.parts,
        measured.images.counted,
        tuple(needs(work(measured), measured.machine) for work in stages),
        timed(measured),
        tuple(_notes(measured)),
    )


def _measure(config: RunConfig, directory: RunDirectory, steps: int) -> Measured:
    for stage in ("data", "space", "supernet", "search", "retrain"):
        directory.check(stage, fingerprint(config, stage))
    device, counts = choose_device(config.device), count_images(config, directory)
    space = space_of(config, counts.classes)
    budgets, middle = _budgets(config, space)
    classes = tuple(map(str, range(int(space.backbone_args["num_classes"]))))
    images = RandomImages(classes, space.input_size, WARM_UP + steps, counts.parts)
    network = baseline(space, UNIFORM, middle, 0).architecture
    vanilla = baseline(space, VANILLA, middle, 0).architecture
    machine = Machine(device.type, machine_name(str(device)), len(os.sched_getaffinity(0)))
    alphas = {site.name: network.alphas[site.name] for site in space.searchable}
    # What takes little memory first: a process seldom gives back all that it had.
    evaluation = evaluation_pace(config, space, alphas, images, device)
    threads = supernet_threads(config, machine)
    return Measured(
        config,
        directory,
        space,
        budgets,
        counts,
        machine,
        space.cost(network).macs,
        searched=training_pace(config, network, images, device),
        vanilla=training_pace(config, vanilla, images, device),
        supernet=supernet_pace(config, space, images, budgets, device, threads),
        evaluation=evaluation,
    )


def _budgets(config: RunConfig, space: SearchSpace) -> tuple[tuple[Budget, ...], Budget]:
    """All budgets, and the middle one by MACs."""
    path = config.latency.table
    costs = costs_of(space, read_table(Path(path)) if path else None)
    budgets = tuple(entry.resolve(space, costs) for entry in config.space.budgets)
    check_budgets(budgets, CostLevels(space))
    ordered = sorted(budgets, key=lambda budget: budget.max_macs)
    return budgets, ordered[len(ordered) // 2]


def _notes(measured: Measured) -> list[str]:
    """What the estimate leaves out."""
    config = measured.config
    notes = [
        "An estimate: a few steps were timed here and multiplied; a machine that is busy or hot, "
        "or a network file system, takes longer.",
        "Images were random; augmentation is not in it.",
        "Export, report and MLflow are not in it: minutes, and the disk of the networks once more.",
    ]
    if config.supernet.processes > 1:
        notes.append("What the supernet's processes tell each other is not in it.")
    if config.retrain.select == "front":
        notes.append("How many networks the front will have is not known, and not in it.")
    gpus = torch.cuda.device_count()
    if measured.machine.device == "cuda" and config.supernet.processes > gpus:
        notes.append(
            f"supernet.processes: {config.supernet.processes}, but this machine's GPUs: {gpus}."
        )
    if isinstance(config.data, ImagesSettings) and not measured.images.seconds:
        notes.append("How long images take to decode is not known, and not in it.")
    return notes
