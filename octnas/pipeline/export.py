"""Export retrained networks: all of them as a stage, or some of them in other formats."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from octnas.data.image_list import read_summary
from octnas.data.images import Images, open_images, preparation
from octnas.errors import ExportError, RunDirectoryError, SettingError
from octnas.export.formats import Outcome, export_network
from octnas.export.record import check_room
from octnas.export.settings import ExportSettings
from octnas.export.source import Origin, Source
from octnas.io.credentials import redact_all
from octnas.io.files import remove_tree
from octnas.pipeline.records import begin_tracking, class_names, read_results
from octnas.pipeline.retrain import original, read_original, track_network, tracking_key
from octnas.pipeline.run import Run
from octnas.results.networks import SEARCHED, Retrained
from octnas.results.validation_log import VALIDATION_LOG, log_validation
from octnas.settings import PRETRAINED, RENAMED_VALUES, flatten
from octnas.space.architecture import Architecture
from octnas.tracking.models import save_model
from octnas.tracking.tracker import FOLDER
from octnas.training.standalone import WEIGHTS_FILE, training_folder

MODELS_FOLDER = "models"

Size = tuple[int, int, int]
"""Channels, height and width of images."""

# Not exported: paths of this machine.
_PATHS = ("data.root", "data.name", "data.cache.folder")


def export(run: Run) -> None:
    """Export each network, as an MLflow model too, with the weights of the first seed.

    The first, not the best one: val results choose nothing.

    Raises:
        ExportError: variants that were refused, after all others were written.
    """
    results, settings = read_results(run), run.config.export
    begin_tracking(run)
    refused, opened = list[str](), dict[Size, Images]()
    with run.progress.bar("export", len(results)) as bar:
        for result in results:
            folder = _folder(run, result)
            made, images = source(run, result, settings), _images(run, result, opened)
            refused += export_network(made, images, settings, folder).refused
            if run.tracker.enabled:
                _track(run, made, folder)
            bar.advance(note=result.network.slug)
    if refused:
        raise ExportError("\n".join(refused))
    run.progress.say(f"export: {len(results)} folders in {run.directory.stage('export')}")


def _track(run: Run, made: Source, folder: Path) -> None:
    """Log the exported folder, and register the network as an MLflow model."""
    network, key = made.network, tracking_key(made.network)
    # The run may be missing: tracking was off, or its database was deleted.
    track_network(run, network, again=False)
    run.tracker.artifact(key, folder, "model")
    model = run.directory.path / FOLDER / MODELS_FOLDER / network.slug
    remove_tree(model, ignore_errors=True)  # of an interrupted export, or of other weights
    model.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *network.architecture.input_size), generator=generator)
    save_model(made.load(), images, model)
    aliases = {budget.name: budget.alias for budget in run.config.space.budgets}
    run.tracker.model(
        key,
        model,
        digest=made.weights_digest(),
        alias=aliases[network.budget] if network.role == SEARCHED else "",
        tags={"octnas.role": network.role, "octnas.budget": network.budget},
    )
    run.tracker.finish(key)


def export_some(
    run: Run, results: Sequence[Retrained], settings: ExportSettings, out: Path | None = None
) -> dict[Path, Outcome]:
    """Export some of a run's networks; other formats that the export stage has written are kept.

    Args:
        run: with a finished retrain stage.
        results: the networks.
        settings: replace the experiment's.
        out: the folder for a single network, or the parent of one folder per network; the export
            stage's folder by default.

    Raises:
        ExportError: ``out`` holds something else; nothing was written.
    """
    made: dict[Path, tuple[Retrained, Source]] = {}
    for result in results:
        folder = _folder(run, result) if out is None else out
        if out is not None and len(results) > 1:
            folder = out / result.network.slug
        made[folder] = result, source(run, result, settings)
        if out is not None:
            check_room(made[folder][1], folder)
    written, opened = dict[Path, Outcome](), dict[Size, Images]()
    with run.progress.bar("export", len(results) * len(settings.variants)) as bar:
        for folder, (result, one) in made.items():
            images = _images(run, result, opened)
            written[folder] = export_network(
                one, images, settings, folder, lambda variant: bar.advance(note=variant)
            )
    return written


def _folder(run: Run, result: Retrained) -> Path:
    """Where the export stage writes a network; a folder with a former name is kept."""
    network, folder = result.network, run.directory.stage("export")
    for former, role in RENAMED_VALUES["retrain.baselines"].items():
        if network.role == role and (folder / replace(network, role=former).slug).exists():
            return folder / replace(network, role=former).slug
    return folder / network.slug


def read_finished_results(run: Run) -> tuple[Retrained, ...]:
    """The retrained networks.

    Raises:
        RunDirectoryError: retraining is not finished.
    """
    if run.directory.finished("retrain") is None:
        raise RunDirectoryError(
            f"{run.directory.path}: the retrain stage, which export needs, is not finished; run "
            "`octnas retrain` first, or `octnas run` for all stages"
        )
    return read_results(run)


def source(run: Run, result: Retrained, settings: ExportSettings) -> Source:
    """A retrained network with the weights of the first seed."""
    seed = run.config.retrain.seeds[0]
    architecture = result.network.architecture
    folder = training_folder(run.directory.stage("retrain"), architecture.id, seed)
    return Source(
        retrained=result,
        seed=seed,
        weights=folder / WEIGHTS_FILE,
        class_names=class_names(run),
        preparation=preparation(run.config.data),
        data=_data(run),
        vanilla_macs=run.space.vanilla_macs,
        data_license=settings.data_license,
        origin=_origin(run, architecture),
    )


def _origin(run: Run, architecture: Architecture) -> Origin | None:
    """The network that a retrained one was fine-tuned from or taught by; None if by none."""
    config, backbone = run.config, run.space.backbone
    through = config.supernet.weights if config.retrain.weights == "supernet" else ""
    taught = config.begins_with("retrain") and config.retrain.distillation is not None
    if not (config.begins_with("retrain") or through):
        return None
    fits = original(run).weights_for(architecture) is not None
    if not (fits or taught):
        return None
    name, result = config.name, read_original(run)
    if config.trains_original:
        name = f"a plain {backbone} trained on the same images"
    elif PRETRAINED in (config.space.weights, through):
        name = f"timm's {backbone}"
    top1 = None if result is None else result.mean("val_top1")
    return Origin(name, fits, taught, licensed=not config.trains_original, top1=top1)


def _data(run: Run) -> dict[str, Any]:
    """The training data and its settings."""
    summary = read_summary(run.data.folder)
    counts = {part: count for part, count in summary.counts.items() if count}
    settings = flatten(run.config.data, "data")
    return {
        "source": run.config.data.source,
        "digest": summary.digest,
        "classes": summary.classes,
        "counts": counts,
        "settings": redact_all({k: v for k, v in settings.items() if k not in _PATHS}),
    }


def _images(run: Run, result: Retrained, opened: dict[Size, Images]) -> Images:
    """The images at the network's size; logs that val images are used."""
    architecture, path = result.network.architecture, run.directory.path / VALIDATION_LOG
    size = architecture.input_size
    log_validation(path, architecture, run.config.retrain.seeds[0], size[-1], "export")
    if size not in opened:
        opened[size] = open_images(run.data, size, "cpu")
    return opened[size]


def by_architecture(results: Sequence[Retrained], identity: str) -> Retrained:
    """The network whose architecture id starts with ``identity``.

    Raises:
        SettingError: there is none, or there are several; lists all.
    """
    ids = {result.network.architecture.id: result for result in reversed(results)}
    found = [result for own, result in ids.items() if identity and own.startswith(identity)]
    if len(found) != 1:
        there = ", ".join(
            f"{result.network.architecture.id} ({result.network.name})" for result in results
        )
        raise SettingError("architecture", identity, f"the start of one of {there}")
    return found[0]


def by_budget(results: Sequence[Retrained], budget: str, vanilla_macs: int) -> Retrained:
    """The searched network of a budget.

    Args:
        results: the retrained networks.
        budget: a name, such as ``"uniform α 0.5"`` (or ``"uniform-0.5"``); or a share of the
            vanilla network's MACs, such as ``"0.5x"``: the searched network with the most MACs
            below it.
        vanilla_macs: MACs at α = 0.

    Raises:
        SettingError: there is none; lists all.
    """
    searched = [result for result in results if result.network.role == SEARCHED]
    if share := re.fullmatch(r"(\d*\.?\d+)\s*[x×]", budget.strip()):
        most = float(share[1]) * vanilla_macs
        found = [result for result in searched if result.network.cost.macs <= most]
        if found:
            return max(found, key=lambda result: result.network.cost.macs)
    else:
        found = [r for r in searched if _plain(r.network.budget) == _plain(budget)]
        if found:
            return found[0]
    there = ", ".join(
        f"{result.network.budget} ({result.network.cost.macs / vanilla_macs:.3f}x)"
        for result in searched
    )
    raise SettingError("budget", budget, f"one of {there}, or a share such as 0.5x above one")


def _plain(name: str) -> str:
    """A budget's name without characters that are hard to type."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
