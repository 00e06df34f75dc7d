"""The shipped experiment, made tiny: the same path through the program in seconds."""

import shutil
from pathlib import Path
from typing import Any

from octnas.pipeline.run import Run, open_run
from octnas.runtime.progress import Quiet

EXPERIMENT = Path(__file__).parents[2] / "search_spaces" / "digits_scratch.yaml"
TINY = (
    "name=tiny",
    "space.backbone_args.channels=[4, 8, 8]",
    "space.alphas=[0, 0.5, 1]",
    "data.train_images=256",
    "data.search_val_images=64",
    "data.read_images=64",
    "data.val_images=64",
    "supernet.threads=1",
    "supernet.recipe.epochs=2",
    "supernet.recipe.warmup_epochs=0.5",
    "search.trials=20",
    "search.spread=4",
    "search.population=6",
    "search.calibration_batches=1",
    "retrain.seeds=[0, 1]",
    "retrain.workers=1",
    "retrain.recipe.epochs=2",
    "retrain.recipe.warmup_epochs=0.5",
)
OFF = "tracking.enabled=false"  # a new store of MLflow takes seconds
BRIEF = "supernet.recipe.epochs=1"  # where any supernet will do


def with_store(path: Path, migrated: Path) -> None:
    """Give the tiny experiment in ``path`` a store of MLflow, before it would create one."""
    (path / "runs").mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, path / "runs" / "mlflow.db")


def open_unlocked(*args: Any, **kwargs: Any) -> Run:
    """A run as `open_run` opens it, whose lock is released again."""
    with open_run(*args, **kwargs) as run:
        return run


def open_tiny(path: Path, *overrides: str, lines: list[str] | None = None, **kwargs: object) -> Run:
    """The tiny experiment with its run directory in ``path``."""
    said = [] if lines is None else lines
    return open_unlocked(
        EXPERIMENT,
        overrides=(*TINY, *overrides),
        run_dir=path / "runs" / "tiny",
        progress=Quiet(said.append),
        **kwargs,  # type: ignore[arg-type]
    )
