"""What is read of a run directory, and by what; see `test_bad_run_directory.py`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import octnas
from octnas.data.image_list import read_images
from octnas.data.images import Data, open_images
from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.export.record import check_room, read_variants
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights
from octnas.pipeline.export import source
from octnas.pipeline.latency import measure_chosen
from octnas.pipeline.ranking import trainings
from octnas.pipeline.records import read_chosen, read_results
from octnas.pipeline.report import gather
from octnas.pipeline.run import Run, look_at_run, owned
from octnas.pipeline.search import _driver
from octnas.pipeline.so_far import results_so_far
from octnas.pipeline.supernet import trained_supernet
from octnas.pipeline.trainings import finished
from octnas.report.page import write_page
from octnas.search.storage import opened
from octnas.tracking.outbox import Outbox
from octnas.tracking.progress import unsent
from tests.data.trees import SIZE, prepared


def look(path: Path) -> None:
    """What `octnas report`, `compare` and `plan` read."""
    write_page(gather(look_at_run(path)), path / "report" / "index.html", 0)


def _resume(run: Run) -> None:
    with opened("", run.directory.stage("search") / "study.journal") as storage:
        _driver(run, storage, lambda _: None).ask()


def resume(path: Path) -> None:
    """What a search reads that goes on."""
    _resume(look_at_run(path))


def retraining(path: Path) -> None:
    """What retraining reads that goes on, and the report of it."""
    (path / "retrain" / "stage.json").unlink(missing_ok=True)
    results_so_far(look_at_run(path))


def tracking(path: Path) -> None:
    """What `octnas sync` reads before it sends anything."""
    outbox = Outbox(path / "mlflow")
    unsent(outbox, path / "tracking.json", "sqlite:///x.db")
    outbox.open()
    for entry in outbox.entries():
        outbox.file(entry) if "path" in entry.values else None


def supernet(path: Path) -> None:
    """What the search begins with."""
    trained_supernet(look_at_run(path)).load()


def exported(path: Path) -> None:
    """What whoever is given a network reads."""
    octnas.load(path / "export" / "vanilla")


def exported_before(path: Path) -> None:
    """What `octnas export` reads that adds formats."""
    run = look_at_run(path)
    result = next(one for one in read_results(run) if one.network.slug == "vanilla")
    made, folder = source(run, result, run.config.export), path / "export" / "vanilla"
    check_room(made, folder)
    read_variants(made, folder)


def images(path: Path) -> None:
    """The list of images; of digits there is a summary alone."""
    assert (path / "data" / "images.json").exists()
    look_at_run(path).data.images  # noqa: B018
    if (path / "data" / "images.tsv").exists():
        read_images(path / "data")


def trained(path: Path) -> None:
    """What `octnas export` reads of a network, and `octnas rank` of the ground truth."""
    run = look_at_run(path)
    for one in read_results(run):
        load_weights(
            build(one.network.architecture, seed=0), source(run, one, run.config.export).weights
        )
    for training in trainings(run):
        finished(training)


def measured(path: Path) -> None:
    """What a search reads that goes on with measuring the chosen networks."""
    run = look_at_run(path)
    measure_chosen(run, read_chosen(run))


def own(path: Path) -> None:
    """What every command reads that works on a run directory."""
    try:
        with owned(path, lambda _: None):
            pass
    finally:
        for file in (path / "owner").iterdir():
            file.unlink()


def images_of(path: Path) -> ImagesSettings:
    """Images on disk with a cache, beside the run."""
    cache = CacheSettings(enabled=True, folder=str(path / "cache"))
    return ImagesSettings(
        root=str(path / "tree"), search_val_per_class=3, read_per_class=2, workers=0, cache=cache
    )


def cached(path: Path) -> None:
    """What the data stage reads that goes on, and every training."""
    prepared(images_of(path), path / "anew")
    for _ in open_images(Data(images_of(path), path / "prepared"), SIZE).batches("val", 4):
        pass


Read = Callable[[Path], None]
READERS: Mapping[str, Read] = {
    "config.yaml": look,
    "run.json": look,
    "looks.jsonl": look,
    "data/images.json": look,
    "space/space.json": look,
    "*/stage.json": look,
    "supernet/history.json": look,
    "search/candidates.json": look,
    "search/chosen.json": look,
    "search/seconds.json": look,
    "retrain/results.json": look,
    "retrain/*/seed-*/judged.safetensors": look,
    "latency/*.json": look,
    "space/latency.json": look,
    "rank/ranking.json": look,
    "search/study.json": resume,
    "search/study.journal": resume,
    "search/outcomes.jsonl": resume,
    "search/latency-*.measured.jsonl": measured,
    "retrain/plan.json": retraining,
    "retrain/*/seed-*/result.json": retraining,
    "retrain/*/seed-*/weights.safetensors": trained,
    "truth/design.json": trained,
    "truth/*/seed-*/result.json": trained,
    "owner/*.json": own,
    "prepared/images.json": cached,
    "prepared/images.tsv": cached,
    "cache/*/shard-000000.json": cached,
    "cache/*/pixels.u8": cached,
    "tracking.json": tracking,
    "mlflow/outbox.jsonl": tracking,
    "supernet/weights.safetensors": supernet,
    "export/vanilla/architecture.json": exported,
    "export/vanilla/model.safetensors": exported,
    "export/vanilla/export.json": exported_before,
}
NOT_READ = (
    # For people and other programs.
    "export/*/README.md",
    "export/*/config.json",
    "rank/ranking.csv",
    "rank/ranking.html",
    "report/**/*",
    # Sent as they are.
    "mlflow/models/**/*",
    "search/trials.json",
    "space/budgets.json",
    # Empty.
    "mlflow/lock",
    # Of other trainings and networks; as those of retraining and of the vanilla network.
    "export/*-*/*",
    "truth/*/seed-*/*.safetensors",
    # Images, and what `cached` makes of them.
    "tree/**/*",
    "anew/*",
    "prepared/problems.txt",
)
"""Files of a run that nothing reads back, or that are read as others are."""
