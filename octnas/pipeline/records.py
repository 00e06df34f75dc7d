"""Files shared by several stages: candidates, chosen networks, results; and the parent MLflow run.

The parent is tagged with the commit of the user's Git repository.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octnas.data.image_list import read_summary
from octnas.io.files import read_json, write_json
from octnas.pipeline.run import CONFIG_FILE, RUN_FILE, Run, versions
from octnas.results.front import Candidate
from octnas.results.networks import Retrained
from octnas.settings import flatten

_SECONDS = 10
# The repository is untrusted: programs that its configuration names are not run, and nothing is
# fetched.
_NOTHING_ELSE = (
    "--no-optional-locks",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
)
_ENVIRONMENT = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
# Scopes of a repository's own configuration.
_OWN = ("local", "worktree")


def commit_tags(folder: Path) -> dict[str, str]:
    """MLflow's tags for the Git commit of a working tree; empty without a repository.

    There is no ``dirty`` tag if the repository configures filters, which `git diff` would run.
    """
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD").stdout.strip()
        tags = {"mlflow.source.git.commit": commit}
        filters = _git(folder, "config", "--show-scope", "--get-regexp", "^filter[.]", codes=(0, 1))
        if any(line.startswith(_OWN) for line in filters.stdout.splitlines()):
            return tags
        options = ("--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
        differs = _git(folder, "diff", *options, "HEAD", codes=(0, 1)).returncode == 1
    except (OSError, subprocess.SubprocessError):
        return {}  # no Git, repository or commit; or a repository too large to compare in time
    return {**tags, "mlflow.source.git.dirty": str(differs).lower()}


def _git(
    folder: Path, *arguments: str, codes: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run Git; a SubprocessError if it fails or takes too long, an OSError if there is none."""
    done = subprocess.run(  # noqa: S603
        ["git", *_NOTHING_ELSE, *arguments],  # noqa: S607
        cwd=folder,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, "git")
    return done


SCHEMA = 1
PARENT = "experiment"
CANDIDATES_FILE = "candidates.json"
CHOSEN_FILE = "chosen.json"
RESULTS_FILE = "results.json"


def begin_tracking(run: Run) -> None:
    """Start or resume the experiment's parent run in MLflow."""
    config = run.config
    params: dict[str, Any] = {"seed": config.seed, "device": config.device}
    params |= flatten(config.space, "space") | flatten(config.data, "data")
    images = read_summary(run.data.folder)
    params |= {"data.digest": images.digest, "data.skipped": len(images.problems)}
    params["version"] = versions()
    run.tracker.start(PARENT, config.name, params=params, tags=commit_tags(Path.cwd()))
    made = ("data/images.json", "space/space.json", "space/budgets.json")
    for name in (CONFIG_FILE, RUN_FILE, *made):
        run.tracker.artifact(PARENT, run.directory.path / name)


def class_names(run: Run) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; their numbers if they have no names."""
    about = read_summary(run.data.folder)
    return about.class_names or tuple(map(str, range(about.classes)))


def write_candidates(run: Run, candidates: Sequence[Candidate]) -> None:
    """Write every candidate that the search has evaluated."""
    write_json(
        run.directory.stage("search") / CANDIDATES_FILE,
        {"schema": SCHEMA, "candidates": [candidate.to_dict() for candidate in candidates]},
    )


def read_candidates(run: Run) -> tuple[Candidate, ...]:
    """Read what `write_candidates` wrote."""
    path = run.directory.stage("search") / CANDIDATES_FILE
    return read_json(path, tuple[Candidate, ...], schema=SCHEMA, key="candidates")


def write_chosen(run: Run, chosen: dict[str, Candidate]) -> None:
    """Write the chosen candidates by name of the budget."""
    write_json(
        run.directory.stage("search") / CHOSEN_FILE,
        {"schema": SCHEMA, "chosen": {name: found.to_dict() for name, found in chosen.items()}},
    )


def read_chosen(run: Run) -> dict[str, Candidate]:
    """Read what `write_chosen` wrote."""
    path = run.directory.stage("search") / CHOSEN_FILE
    return read_json(path, dict[str, Candidate], schema=SCHEMA, key="chosen")


def write_results(run: Run, results: Sequence[Retrained], original: Retrained | None) -> None:
    """Write the retrained networks with their results by seed, and what the run began with."""
    document = {
        "schema": SCHEMA,
        "original": original and original.to_dict(),
        "networks": [result.to_dict() for result in results],
    }
    write_json(run.directory.stage("retrain") / RESULTS_FILE, document)


def read_results(run: Run) -> tuple[Retrained, ...]:
    """Read what `write_results` wrote."""
    path = run.directory.stage("retrain") / RESULTS_FILE
    return read_json(path, tuple[Retrained, ...], schema=SCHEMA, key="networks")
