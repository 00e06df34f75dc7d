"""Stage 6: every retrained network as a folder that timm loads, and as an MLflow model."""

import shutil
from hashlib import file_digest
from pathlib import Path

import torch

from octnas.data.images import preparation
from octnas.export.timm_folder import export_timm
from octnas.nn.load import WEIGHTS_FILE as EXPORTED_FILE
from octnas.nn.load import load
from octnas.pipeline.opening import Run
from octnas.pipeline.records import begin_tracking, read_results
from octnas.pipeline.retrain import track_network, tracking_key
from octnas.results import SEARCHED, Network
from octnas.tracking.models import save_model
from octnas.training.fit import WEIGHTS_FILE

MODELS_FOLDER = "models"


def export(run: Run) -> None:
    """Write each network with the weights of the first seed: no choice by val results."""
    results = read_results(run)
    seed = run.config.retrain.seeds[0]
    begin_tracking(run)
    with run.progress.bar("export", len(results)) as bar:
        for result in results:
            network = result.network
            trained = run.directory.stage("retrain") / network.architecture.id / f"seed-{seed}"
            folder = run.directory.stage("export") / network.slug
            export_timm(
                network.architecture,
                trained / WEIGHTS_FILE,
                folder,
                num_classes=network.architecture.backbone_args["num_classes"],
                data_config=preparation(run.config.data),
            )
            if run.tracker.enabled:
                # Here, and not where it is sent: that knows no torch.
                _track(run, network, folder)
            bar.advance(note=network.slug)
    run.progress.say(f"export: {len(results)} folders in {run.directory.stage('export')}")


def _track(run: Run, network: Network, folder: Path) -> None:
    """Log the folder, and the network as a model; register the model."""
    key = tracking_key(network)
    # Here too: the run may be missing, if tracking was off or its database is gone.
    track_network(run, network, anew=False)
    run.tracker.artifact(key, folder, "model")
    aliases = {budget.name: budget.alias for budget in run.config.space.budgets}
    with (folder / EXPORTED_FILE).open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    run.tracker.model(
        key,
        _mlflow_model(run, network, folder),
        digest=digest,
        alias=aliases[network.budget] if network.role == SEARCHED else "",
        tags={"octnas.role": network.role, "octnas.budget": network.budget},
    )
    run.tracker.finish(key)


def _mlflow_model(run: Run, network: Network, folder: Path) -> Path:
    """Write the network as an MLflow model beside the outbox."""
    path = run.directory.path / "mlflow" / MODELS_FOLDER / network.slug
    # Of an export that was broken off, or of other weights.
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *network.architecture.input_size), generator=generator)
    save_model(load(folder), images, path)
    return path
