"""The ground truth of a ranking check: some architectures, trained from scratch with some seeds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from octnas.data.image_list import read_summary
from octnas.documents import read_as
from octnas.errors import BudgetError, RunDirectoryError
from octnas.files import write_json
from octnas.pipeline.opening import Run
from octnas.pipeline.trainings import train_several
from octnas.run_directory import read_document, reading
from octnas.training.fit import Training, training_folder

SCHEMA = 1
DESIGN_FILE = "design.json"
PART = "read"
_TRIES = 100  # draws in a row that find nothing new


@dataclass(frozen=True)
class Drawn:
    """An architecture of the ground truth.

    Attributes:
        alphas: α by site.
        narrow: whether it belongs to the slice of nearly equal MACs.
    """

    alphas: Mapping[str, float]
    narrow: bool


def truth(run: Run) -> None:
    """Draw the architectures, train each with every seed; what is on disk is not trained again."""
    settings, directory = run.config.ranking, run.directory_of("truth")
    path = directory.stage("truth") / DESIGN_FILE
    if not path.exists():
        design = [asdict(drawn) for drawn in draw(run)]
        directory.begin("truth", run.fingerprint("truth"))
        document = {"schema": SCHEMA, "images": _digest(run), "architectures": design}
        write_json(path, document)
    train_several(run, trainings(run), settings, "ranking", "ground truth")
    run.progress.say(
        f"truth: {len(read_design(run))} architectures × {len(settings.seeds)} seeds, "
        f"{settings.recipe.epochs} epochs each"
    )


def draw(run: Run) -> list[Drawn]:
    """Architectures spread over MACs, and some of nearly equal MACs; all of them different.

    Raises:
        BudgetError: the search space holds too few.
    """
    settings, levels = run.config.ranking, run.levels
    rng = np.random.default_rng(settings.seed)
    middle = sorted(budget.max_macs for budget in run.budgets)[len(run.budgets) // 2]
    top = min(middle, levels.dearest)
    bottom = round(top * (1 - settings.narrow_width))
    found: dict[str, Drawn] = {}

    def add(count: int, low: int, high: int, narrow: bool) -> None:
        target, failed = len(found) + count, 0
        while len(found) < target:
            before = len(found)
            for alphas in levels.spread(rng, target - before, low, high):
                found.setdefault(run.space.architecture(alphas).id, Drawn(alphas, narrow))
            failed = failed + 1 if len(found) == before else 0
            if failed == _TRIES:
                raise BudgetError(
                    f"ranking: {count} architectures of {low:,} to {high:,} MACs are asked for, "
                    f"found {len(found) + count - target}; lower ranking.architectures or "
                    "ranking.narrow, or raise ranking.narrow_width"
                )

    add(settings.narrow, bottom, top, narrow=True)
    add(settings.architectures - settings.narrow, levels.cheapest, levels.dearest, narrow=False)
    return list(found.values())


def read_design(run: Run) -> list[Drawn]:
    """What was drawn.

    Raises:
        RunDirectoryError: also if it was drawn for other images than this run's.
    """
    path = run.directory_of("truth").stage("truth") / DESIGN_FILE
    with reading(path):
        document = read_document(path, SCHEMA, "architectures")
        design = read_as(list[Drawn], document["architectures"])
    if document.get("images", _digest(run)) != _digest(run):
        raise RunDirectoryError(
            f"{path}: this ground truth was trained on other images, of digest "
            f"{document['images']}; this run's is {_digest(run)}"
        )
    return design


def _digest(run: Run) -> str:
    return str(read_summary(run.data.folder)["digest"])


def trainings(run: Run) -> list[Training]:
    """The trainings of the ground truth, by architecture in the order of the design, then seed."""
    folder = run.directory_of("truth").stage("truth")
    found = []
    for drawn in read_design(run):
        architecture = run.space.architecture(drawn.alphas)
        for seed in run.config.ranking.seeds:
            place = training_folder(folder, architecture.id, seed)
            found.append(Training(architecture, seed, place, PART))
    return found
