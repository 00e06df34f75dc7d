"""A ranking check of the tiny experiment."""

from pathlib import Path

from octnas.pipeline.run import Run
from tests.pipeline.tiny import open_tiny

STAGES = ("supernet", "truth", "rank")
TINY_RANKING = (
    "supernet.recipe.epochs=1",
    "ranking.architectures=6",
    "ranking.narrow=2",
    "ranking.narrow_width=0.2",
    "ranking.seeds=[0, 1]",
    "ranking.workers=1",
    "ranking.resamples=20",
    "ranking.recipe={epochs: 2, batch_size: 32, warmup_epochs: 0.5}",
)


def open_ranking(path: Path, *overrides: str, **kwargs: object) -> Run:
    """The tiny ranking check with its run directory in ``path``."""
    return open_tiny(path, *TINY_RANKING, *overrides, **{"stages": STAGES, **kwargs})  # type: ignore[arg-type]


def results(path: Path) -> dict[str, int]:
    """When each training of the ground truth was finished, by its place."""
    folder = path / "runs" / "tiny" / "truth"
    found = folder.glob("*/*/result.json")
    return {str(one.relative_to(folder)): one.stat().st_mtime_ns for one in found}
