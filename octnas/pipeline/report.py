"""Stage 7: the report, from whatever the stages before have written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from octnas.data.image_list import read_summary
from octnas.front import Front
from octnas.looks import LOOKS_FILE, count_looks
from octnas.pipeline.opening import RUN_FILE, Run
from octnas.pipeline.rank import read_rankings
from octnas.pipeline.records import (
    PARENT,
    begin_tracking,
    read_candidates,
    read_chosen,
    read_results,
)
from octnas.pipeline.supernet import HISTORY_FILE, SCHEMA
from octnas.report.data import ReportData
from octnas.report.figures import alpha_figure, front_figure, retrained_figure, training_figure
from octnas.report.page import write_page
from octnas.report.tables import retrained_rows, write_csv
from octnas.results import Retrained
from octnas.run_directory import read_document, reading, write_text
from octnas.training.one import JUDGED_FILE
from octnas.verdict import Matrix

PAGE_FILE = "index.html"
TABLE_FILE = "networks.csv"
FIGURES_FOLDER = "figures"


def report(run: Run) -> None:
    """Write the page and, where networks were retrained, their table."""
    data = gather(run)
    folder = run.directory.stage("report")
    write_page(data, folder / PAGE_FILE)
    if data.retrained:
        rows = retrained_rows(data.retrained, data.space.vanilla_macs)
        write_csv(rows, folder / TABLE_FILE)
    figures = _write_figures(data, folder / FIGURES_FOLDER)
    begin_tracking(run)
    for path in (folder / PAGE_FILE, folder / TABLE_FILE, figures):
        if path.exists():
            run.tracker.artifact(PARENT, path, "report")
    run.progress.say(f"report: {folder / PAGE_FILE}")


def _write_figures(data: ReportData, folder: Path) -> Path:
    """The page's figures as plotly's JSON, which `plotly.io.read_json` makes figures of."""
    figures = {
        "front": front_figure(data),
        "retrained": retrained_figure(data),
        "alpha": alpha_figure(data),
        "training": training_figure(data),
    }
    for name, figure in figures.items():
        if figure is not None:
            write_text(folder / f"{name}.json", figure.to_json())
    return folder


def gather(run: Run) -> ReportData:
    """Everything that the report shows, from the files of the run directory."""
    candidates = read_candidates(run)
    retrained = read_results(run) if run.directory.finished("retrain") else ()
    history = read_document(run.directory.stage("supernet") / HISTORY_FILE, SCHEMA, "epochs")
    return ReportData(
        name=run.config.name,
        space=run.space,
        budgets=run.budgets,
        candidates=candidates,
        front=Front.of(candidates),
        chosen=read_chosen(run),
        retrained=retrained,
        rankings=read_rankings(run) if run.directory.finished("rank") else {},
        supernet_history=tuple(history["epochs"]),
        facts=facts(run),
        correct=correct(run, retrained),
        val_looks=count_looks(run.directory.path / LOOKS_FILE, "retrain"),
    )


def correct(run: Run, retrained: Sequence[Retrained]) -> dict[str, Matrix]:
    """Whether each val image was right, by architecture; where every training has kept that."""
    folder, found = run.directory.stage("retrain"), dict[str, Matrix]()
    for one in retrained:
        identity = one.network.architecture.id
        files = [folder / identity / f"seed-{result.seed}" / JUDGED_FILE for result in one.runs]
        if all(file.exists() for file in files):
            rows = [load_file(file) for file in files]
            found[identity] = np.array([row["predicted"] == row["target"] for row in rows], float)
    return found


def facts(run: Run) -> dict[str, str]:
    """What the report shows as it is: data, settings, versions."""
    path = run.directory.path / RUN_FILE
    with reading(path):
        runs = read_document(path, SCHEMA, "runs")["runs"]
        first, last = runs[0], runs[-1]
        overrides = dict.fromkeys(override for record in runs for override in record["overrides"])
    config, images = run.config, read_summary(run.data.folder)
    return {
        "Data": f"{config.data.source}, digest {images['digest']}",
        "Images": ", ".join(f"{n:,} {part}" for part, n in images["counts"].items() if n),
        "Skipped images and folders": str(len(images["problems"])),
        "Seed of supernet and search": str(config.seed),
        "Seeds of retraining": ", ".join(map(str, config.retrain.seeds)),
        "Supernet": f"{config.supernet.recipe.epochs} epochs, {config.supernet.sampling}",
        "Search": f"{config.search.sampler}, {config.search.trials} trials",
        "Retraining": f"{config.retrain.recipe.epochs} epochs from scratch",
        "Device": config.device,
        "Begun": first["time"],
        "Overrides": ", ".join(overrides) or "none",
        "Versions": ", ".join(f"{name} {found}" for name, found in last["versions"].items()),
        "Python": f"{last['python']} on {last['platform']}",
    }
