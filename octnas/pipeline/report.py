"""Stage 7: the report, from whatever the stages before have written."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from octnas.data.image_list import read_summary
from octnas.documents import read_as
from octnas.front import Front
from octnas.looks import LOOKS_FILE, count_looks
from octnas.pipeline.effects import effects_of_sites
from octnas.pipeline.facts import facts, links, recipe_digest, stage_times
from octnas.pipeline.network_latency import latencies
from octnas.pipeline.opening import Run
from octnas.pipeline.rank import read_rankings
from octnas.pipeline.records import PARENT, begin_tracking, class_names
from octnas.pipeline.so_far import (
    candidates_so_far,
    chosen_so_far,
    results_so_far,
    stages_left,
)
from octnas.pipeline.space import read_table
from octnas.pipeline.supernet import HISTORY_FILE, SCHEMA
from octnas.report.data import ReportData
from octnas.report.page import write_page
from octnas.report.write import FRONT_CSV, FRONT_JSON, MARKDOWN, PAGE_FILE, TABLE_FILE, write_all
from octnas.results import Retrained, check_history
from octnas.run_directory import read_document, reading
from octnas.training.fit import training_folder
from octnas.training.one import JUDGED_FILE
from octnas.verdict import Matrix

_FIGURES = "figures"


def report(run: Run, *, tables: Iterable[Path] = (), png: bool = False) -> None:
    """Write the page, the front, the table of retrained networks, and a summary in Markdown.

    Args:
        run: with a finished space stage.
        tables: of layer times of other devices.
        png: whether figures are also drawn as PNG files.
    """
    data, folder = gather(run, tables), run.directory.stage("report")
    for line in write_all(data, folder, png=png):
        run.progress.say(f"report: {line}")
    begin_tracking(run)
    for name in (PAGE_FILE, TABLE_FILE, FRONT_CSV, FRONT_JSON, MARKDOWN, _FIGURES):
        if (folder / name).exists():
            run.tracker.artifact(PARENT, folder / name, "report")
    run.progress.say(f"report: {folder / PAGE_FILE}")


def write_for_now(run: Run, *, tables: Iterable[Path] = (), seconds: int) -> bool:
    """Write the page alone, while another process goes on with the run; whether it is finished.

    Args:
        run: that is going on; nothing but the page is written.
        tables: as in `report`.
        seconds: after which the page asks for itself again, as long as the run is not finished.
    """
    data = gather(run, tables)
    again = seconds if data.unfinished else 0
    write_page(data, run.directory.stage("report") / PAGE_FILE, again)
    return not data.unfinished


def gather(run: Run, tables: Iterable[Path] = ()) -> ReportData:
    """Everything that the report shows, from the files of the run directory.

    Args:
        run: with a finished space stage.
        tables: of layer times of other devices.

    Raises:
        RunDirectoryError: files that do not hold what they should.
        LatencyError: a table that cannot be read, or of another network.
    """
    candidates = candidates_so_far(run)
    chosen, retrained = chosen_so_far(run, candidates), results_so_far(run)
    images = read_summary(run.data.folder)
    known = (*candidates, *chosen.values())
    return ReportData(
        name=run.config.name,
        space=run.space,
        budgets=run.budgets,
        candidates=candidates,
        front=Front.of(candidates),
        chosen=chosen,
        retrained=retrained,
        rankings=read_rankings(run) if run.directory.finished("rank") else {},
        supernet_history=_history(run),
        facts=facts(run),
        correct=correct(run, retrained),
        val_looks=count_looks(run.directory.path / LOOKS_FILE),
        controls=run.config.retrain.baselines,
        latencies=latencies(run, known, retrained, [read_table(path) for path in tables]),
        effects=effects_of_sites(run.space, candidates),
        by_class=by_class(run, retrained),
        class_names=class_names(run),
        digest=str(images["digest"]),
        skipped=len(images["problems"]),
        recipe=recipe_digest(run),
        times=stage_times(run, retrained),
        unfinished=stages_left(run),
        links=links(run),
        run=quote(str(run.directory.path)),
    )


def _history(run: Run) -> tuple[dict[str, float], ...]:
    if run.directory.finished("supernet") is None:
        return ()
    path = run.directory.stage("supernet") / HISTORY_FILE
    with reading(path):
        rows = read_document(path, SCHEMA, "epochs")["epochs"]
        check_history(rows)
        return read_as(tuple[dict[str, float], ...], rows)


def correct(run: Run, retrained: Sequence[Retrained]) -> dict[str, Matrix]:
    """Whether each val image was right, by architecture; where every training has kept that."""
    return {
        identity: np.array([row["predicted"] == row["target"] for row in rows], float)
        for identity, rows in _judged(run, retrained)
    }


def by_class(run: Run, retrained: Sequence[Retrained]) -> dict[str, Matrix]:
    """Accuracy by class, mean over seeds, by architecture; shape ``(classes,)``."""
    classes, found = len(class_names(run)), dict[str, Matrix]()
    for identity, rows in _judged(run, retrained):
        targets = rows[0]["target"]
        right = np.mean([row["predicted"] == row["target"] for row in rows], axis=0)
        there = np.bincount(targets, minlength=classes)
        found[identity] = np.bincount(targets, right, classes) / np.maximum(there, 1)
    return found


def _judged(
    run: Run, retrained: Sequence[Retrained]
) -> Iterable[tuple[str, list[dict[str, Matrix]]]]:
    """What every training of an architecture has made of the val images, where all kept that."""
    folder = run.directory.stage("retrain")
    for one in retrained:
        identity = one.network.architecture.id
        files = [
            training_folder(folder, identity, result.seed) / JUDGED_FILE for result in one.runs
        ]
        if all(file.exists() for file in files):
            yield identity, [_answers(file, len(class_names(run))) for file in files]


def _answers(path: Path, classes: int) -> dict[str, Matrix]:
    """The classes that a training has predicted, and those that are right.

    Raises:
        RunDirectoryError: the file holds something else.
    """
    with reading(path, SafetensorError, OSError):
        found = load_file(path)
        predicted, target = found["predicted"], found["target"]
        if predicted.ndim != 1 or predicted.shape != target.shape:
            raise ValueError(f"found shapes {predicted.shape} and {target.shape}")
        if (
            not len(target)
            or target.dtype.kind != "i"
            or not 0 <= target.min() <= target.max() < classes
        ):
            raise ValueError(f"found no classes, or others than 0 to {classes - 1}")
    return found
