"""Stage 6: every retrained network for others, and as an MLflow model.

By a command of its own also single networks in more formats.

Which of a run's retrained networks is meant.
"""

import re
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch

from octnas.data.image_list import read_summary
from octnas.data.images import Images, open_images, preparation
from octnas.errors import ExportError, RunDirectoryError, SettingError
from octnas.export.formats import Outcome, export_network
from octnas.export.record import check_room
from octnas.export.settings import ExportSettings
from octnas.export.source import Source
from octnas.io.credentials import redact_all
from octnas.io.files import remove_tree
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights
from octnas.pipeline.records import begin_tracking, class_names, read_results
from octnas.pipeline.retrain import track_network, tracking_key
from octnas.pipeline.run import Run
from octnas.results.networks import SEARCHED, Network, Retrained
from octnas.results.validation_log import LOOKS_FILE, log_validation
from octnas.settings import flatten
from octnas.tracking.models import save_model
from octnas.tracking.tracker import FOLDER
from octnas.training.standalone import WEIGHTS_FILE, training_folder

MODELS_FOLDER = "models"

Size = tuple[int, int, int]
"""Channels, height and width of images."""

# Where the data lie on this machine is nobody else's concern.
_PLACES = ("data.root", "data.name", "data.cache.folder")


def export(run: Run) -> None:
    """Write each network with the weights of the first seed: no choice by val results.

    Raises:
        ExportError: variants that were refused, after all others were written.
    """
    results, settings = read_results(run), run.config.export
    begin_tracking(run)
    refused, opened = list[str](), dict[Size, Images]()
    with run.progress.bar("export", len(results)) as bar:
        for result in results:
            network = result.network
            folder = run.directory.stage("export") / network.slug
            images = _images(run, result, opened)
            made = source(run, result, settings)
            found = export_network(made, images, settings, folder)
            refused += found.refused
            if run.tracker.enabled:
                # Here, and not where it is sent: that knows no torch.
                _track(run, network, folder, made.weights)
            bar.advance(note=network.slug)
    if refused:
        raise ExportError("\n".join(refused))
    run.progress.say(f"export: {len(results)} folders in {run.directory.stage('export')}")


def _track(run: Run, network: Network, folder: Path, weights: Path) -> None:
    """Log the folder, and the network as a model, whatever formats there are; register it."""
    key = tracking_key(network)
    # Here too: the run may be missing, if tracking was off or its database is gone.
    track_network(run, network, anew=False)
    run.tracker.artifact(key, folder, "model")
    aliases = {budget.name: budget.alias for budget in run.config.space.budgets}
    with weights.open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    run.tracker.model(
        key,
        _mlflow_model(run, network, weights),
        digest=digest,
        alias=aliases[network.budget] if network.role == SEARCHED else "",
        tags={"octnas.role": network.role, "octnas.budget": network.budget},
    )
    run.tracker.finish(key)


def _mlflow_model(run: Run, network: Network, weights: Path) -> Path:
    """Write the network as an MLflow model beside the outbox."""
    path = run.directory.path / FOLDER / MODELS_FOLDER / network.slug
    # Of an export that was broken off, or of other weights.
    remove_tree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *network.architecture.input_size), generator=generator)
    model = build(network.architecture, seed=0)
    load_weights(model, weights)
    save_model(model.eval(), images, path)
    return path


def export_some(
    run: Run, results: Sequence[Retrained], settings: ExportSettings, out: Path | None = None
) -> dict[Path, Outcome]:
    """Write some of a run's networks, beside what the stage has written of them.

    Args:
        run: whose retraining is finished.
        results: the networks.
        settings: in the place of the experiment's.
        out: a folder for a single network, or for one folder for each of several; by default
            the export stage's.

    Returns:
        What came of it, by folder.

    Raises:
        ExportError: ``out`` holds something else; nothing was written.
    """
    made: dict[Path, tuple[Retrained, Source]] = {}
    for result in results:
        folder = (out or run.directory.stage("export")) / result.network.slug
        if out is not None and len(results) == 1:
            folder = out
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


def read_finished_results(run: Run) -> tuple[Retrained, ...]:
    """The retrained networks of a run that has come so far.

    Raises:
        RunDirectoryError: it has not.
    """
    if run.directory.finished("retrain") is None:
        raise RunDirectoryError(
            f"{run.directory.path}: export builds on retrain, which is not finished; run "
            "`octnas retrain` first, or `octnas run` for everything"
        )
    return read_results(run)


def source(run: Run, result: Retrained, settings: ExportSettings) -> Source:
    """A retrained network, and what there is to know of it."""
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
    )


def _data(run: Run) -> dict[str, Any]:
    """What the network was trained on."""
    summary = read_summary(run.data.folder)
    counts = {part: count for part, count in summary.counts.items() if count}
    settings = flatten(run.config.data, "data")
    return {
        "source": run.config.data.source,
        "digest": summary.digest,
        "classes": summary.classes,
        "counts": counts,
        "settings": redact_all({k: v for k, v in settings.items() if k not in _PLACES}),
    }


def _images(run: Run, result: Retrained, opened: dict[Size, Images]) -> Images:
    """At the size of the network, for a look at val; those of a size are opened once."""
    architecture, path = result.network.architecture, run.directory.path / LOOKS_FILE
    size = architecture.input_size
    log_validation(path, architecture, run.config.retrain.seeds[0], size[-1], "export")
    if size not in opened:
        opened[size] = open_images(run.data, size, "cpu")
    return opened[size]


def by_architecture(results: Sequence[Retrained], identity: str) -> Retrained:
    """The network whose id begins so.

    Raises:
        SettingError: none does, or several do; with what there is.
    """
    ids = {result.network.architecture.id: result for result in reversed(results)}
    found = [result for own, result in ids.items() if identity and own.startswith(identity)]
    if len(found) != 1:
        there = ", ".join(
            f"{result.network.architecture.id} ({result.network.name})" for result in results
        )
        raise SettingError("architecture", identity, f"the beginning of one of {there}")
    return found[0]


def by_budget(results: Sequence[Retrained], budget: str, vanilla_macs: int) -> Retrained:
    """The searched network of a budget.

    Args:
        results: the retrained networks.
        budget: its name, such as ``"uniform α 0.5"`` (``"uniform-0.5"`` will do); or a share of
            the vanilla network's MACs, such as ``"0.5x"``: of the searched networks below it the
            one with most MACs, since val results choose nothing.
        vanilla_macs: at α = 0.

    Raises:
        SettingError: there is none; with what there is.
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
    """A budget's name without what is hard to type."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
