"""What several stages write and read: candidates, chosen networks, results; and MLflow's parent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from octnas.data.image_list import read_summary
from octnas.files import write_json
from octnas.front import Candidate
from octnas.pipeline.commit import commit_tags
from octnas.pipeline.opening import Run, versions
from octnas.pipeline.place import CONFIG_FILE, RUN_FILE
from octnas.results import Retrained
from octnas.run_directory import read_document, reading
from octnas.settings import flatten

SCHEMA = 1
PARENT = "experiment"
CANDIDATES_FILE = "candidates.json"
CHOSEN_FILE = "chosen.json"
RESULTS_FILE = "results.json"
JUDGED = ("val_top1", "val_loss", "seconds")
"""What is measured of every retrained network."""


def begin_tracking(run: Run) -> None:
    """Start the experiment's parent run in MLflow, or go on with it."""
    config = run.config
    params: dict[str, Any] = {"seed": config.seed, "device": config.device}
    params |= flatten(config.space, "space") | flatten(config.data, "data")
    images = read_summary(run.data.folder)
    params |= {"data.digest": images["digest"], "data.skipped": len(images["problems"])}
    params["version"] = versions()
    run.tracker.start(PARENT, config.name, params=params, tags=commit_tags(Path.cwd()))
    made = ("data/images.json", "space/space.json", "space/budgets.json")
    for name in (CONFIG_FILE, RUN_FILE, *made):
        run.tracker.artifact(PARENT, run.directory.path / name)


def class_names(run: Run) -> tuple[str, ...]:
    """Of the data, in the order of the logits; their numbers where they have no names."""
    about = read_summary(run.data.folder)
    return tuple(map(str, about.get("class_names", range(int(about["classes"])))))


def write_candidates(run: Run, candidates: Sequence[Candidate]) -> None:
    """Everything that the search has evaluated."""
    write_json(
        run.directory.stage("search") / CANDIDATES_FILE,
        {"schema": SCHEMA, "candidates": [candidate.to_dict() for candidate in candidates]},
    )


def read_candidates(run: Run) -> tuple[Candidate, ...]:
    """Read what `write_candidates` wrote."""
    path = run.directory.stage("search") / CANDIDATES_FILE
    with reading(path):
        document = read_document(path, SCHEMA, "candidates")
        return tuple(_candidate(run, entry) for entry in document["candidates"])


def _candidate(run: Run, entry: Mapping[str, Any]) -> Candidate:
    """A candidate, each α one of its site's choices.

    Raises:
        ValueError: it is of another search space.
    """
    found = Candidate.from_dict(entry)
    for name, alpha in found.alphas.items():
        if alpha not in run.space.site[name].choices:
            raise ValueError(f"candidate {found.id}: α of site {name}: found {alpha}")
    return found


def write_chosen(run: Run, chosen: dict[str, Candidate]) -> None:
    """The candidate that was chosen for each budget, by the budget's name."""
    write_json(
        run.directory.stage("search") / CHOSEN_FILE,
        {"schema": SCHEMA, "chosen": {name: found.to_dict() for name, found in chosen.items()}},
    )


def read_chosen(run: Run) -> dict[str, Candidate]:
    """Read what `write_chosen` wrote."""
    path = run.directory.stage("search") / CHOSEN_FILE
    with reading(path):
        document = read_document(path, SCHEMA, "chosen")
        chosen = {name: _candidate(run, entry) for name, entry in document["chosen"].items()}
        for one in chosen.values():
            require_metrics(one.metrics, "read_loss")
    return chosen


def write_results(run: Run, results: Sequence[Retrained]) -> None:
    """The retrained networks with their results by seed."""
    write_json(
        run.directory.stage("retrain") / RESULTS_FILE,
        {"schema": SCHEMA, "networks": [result.to_dict() for result in results]},
    )


def read_results(run: Run) -> tuple[Retrained, ...]:
    """Read what `write_results` wrote."""
    path = run.directory.stage("retrain") / RESULTS_FILE
    with reading(path):
        document = read_document(path, SCHEMA, "networks")
        results = tuple(Retrained.from_dict(entry) for entry in document["networks"])
        for result in (result for one in results for result in one.runs):
            require_metrics(result.metrics, *JUDGED)
    return results


def require_metrics(metrics: Mapping[str, float], *names: str) -> None:
    """Refuse what was measured where something is missing.

    Raises:
        KeyError: naming it.
    """
    for name in names:
        if name not in metrics:
            raise KeyError(name)
