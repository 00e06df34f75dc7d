"""Stage 6: every retrained network as a folder that timm loads."""

from octnas.data.images import preparation
from octnas.export.timm_folder import export_timm
from octnas.pipeline.opening import Run
from octnas.pipeline.records import begin_tracking, read_results
from octnas.pipeline.retrain import track_network, tracking_key
from octnas.training.fit import WEIGHTS_FILE


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
            # Here too: the run may be missing, if tracking was off or its database is gone.
            track_network(run, network, anew=False)
            run.tracker.artifact(tracking_key(network), folder, "model")
            run.tracker.finish(tracking_key(network))
            bar.advance(note=network.slug)
    run.progress.say(f"export: {len(results)} folders in {run.directory.stage('export')}")
