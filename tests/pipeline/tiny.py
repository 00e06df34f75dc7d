"""The shipped experiment, made tiny: the same path through the program in seconds."""

from pathlib import Path

from octnas.pipeline.run import Run, open_run
from octnas.runtime.progress import Quiet

EXPERIMENT = Path(__file__).parents[2] / "search_spaces" / "digits.yaml"
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


def open_tiny(path: Path, *overrides: str, lines: list[str] | None = None, **kwargs: object) -> Run:
    """The tiny experiment with its run directory in ``path``."""
    said = [] if lines is None else lines
    return open_run(
        EXPERIMENT,
        overrides=(*TINY, *overrides),
        run_dir=path / "runs" / "tiny",
        progress=Quiet(said.append),
        **kwargs,  # type: ignore[arg-type]
    )
