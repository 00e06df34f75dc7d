"""A whole run that is killed at random moments, again and again, and what is left of it.

``OCTNAS_KILLS=50`` kills more often than the 10 times of every day.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from safetensors.torch import load_file

from octnas.io.files import DRAFT
from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.stages import run_stages
from octnas.report.write import PAGE_FILE
from octnas.results.front import Front
from octnas.runtime.directory import MARKER, WHOLE_RUN
from tests.pipeline.lives import PROGRAM, moments
from tests.pipeline.test_resume import assert_equal, weights
from tests.pipeline.tiny import open_tiny
from tests.training.resuming import timeless

SETTINGS = (
    *("supernet.recipe.epochs=12", "retrain.recipe.epochs=6", "retrain.seeds=[0]"),
    *("supernet.recipe.checkpoint_seconds=0", "retrain.recipe.checkpoint_seconds=0"),
)
RAY = (
    *("search.executor=ray", "search.workers=1", "supernet.recipe.epochs=2"),
    *("retrain.recipe.epochs=2", "retrain.baselines=[uniform]", "retrain.seeds=[0]"),
)
NARROW = ("retrain.baselines=[uniform]", "retrain.seeds=[0]", *SETTINGS[-2:])
KILLS = int(os.environ.get("OCTNAS_KILLS", "10"))


@pytest.mark.slow
@pytest.mark.timeout(1800 + 60 * KILLS)
@pytest.mark.parametrize(
    ("kills", "settings"),
    [pytest.param(KILLS, SETTINGS, id="here"), pytest.param(-(-KILLS // 5), RAY, id="ray")],
)
def test_a_run_that_is_killed_at_any_moment_loses_nothing_and_leaves_nothing_behind(
    tmp_path: Path, kills: int, settings: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    run_stages(open_tiny(whole, *settings))
    seed = int(os.environ.get("OCTNAS_KILLS_SEED", "0"))
    told = live_and_die(killed, settings, moments=moments(seed, kills, seconds_of(whole)))
    lives = [json.loads(line) for line in told.splitlines()]
    assert len(lives) > kills // 2
    assert_same_results(whole, killed, settings)
    assert recorded(killed) == recorded(whole)
    assert files(killed) == files(whole)


CALLS = (
    # Begun in MLflow, and nothing on disk yet that says so.
    ("octnas.pipeline.supernet", "_train", 1),
    # All written and the checkpoints gone, but for the marker.
    ("octnas.runtime.directory", "RunDirectory.finish", 1),
    ("octnas.pipeline.search", "_driver", 1),
    # In MLflow's outbox, and not in the study.
    ("octnas.search.study", "Driver._flush", 10),
    ("octnas.runtime.directory", "RunDirectory.begin", 1),
    # Behind a result.
    ("octnas.training.checkpoint", "Checkpoints.remove", 1),
    # In the middle of an export.
    ("octnas.export.formats", "compare", 1),
    # All is done but to tell MLflow of it.
    ("octnas.tracking.tracker", "Tracker.close", 1),
)


@pytest.mark.slow
def test_a_run_that_is_killed_at_its_narrowest_moments_loses_nothing_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """Which random moments seldom meet."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    run_stages(open_tiny(whole, *NARROW))
    live_and_die(killed, NARROW, calls=CALLS)
    assert_same_results(whole, killed, NARROW)
    assert recorded(killed) == recorded(whole)
    assert files(killed) == files(whole)


def live_and_die(killed: Path, settings: tuple[str, ...], **plan: Any) -> str:
    """Carry out a plan of `tests.pipeline.lives`; what it prints."""
    plan |= {"folder": str(killed), "overrides": settings}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(plan)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)  # noqa: T201 - for whoever asks for more kills
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def seconds_of(path: Path) -> dict[str, float]:
    """How long each stage took."""
    directory = path / "runs" / "tiny"
    ends = [(directory / stage / MARKER).stat().st_mtime for stage in WHOLE_RUN]
    begin = (directory / "config.yaml").stat().st_mtime
    lengths = (end - start for start, end in itertools.pairwise([begin, *ends]))
    return dict(zip(WHOLE_RUN, lengths, strict=True))


def assert_same_results(whole: Path, killed: Path, settings: tuple[str, ...]) -> None:
    """Weights, candidates, front, chosen networks, results."""
    runs = [open_tiny(path, *settings) for path in (whole, killed)]
    assert_equal(weights(killed), weights(whole))
    expected, found = (read_candidates(run) for run in runs)
    assert found == expected
    assert Front.of(found).candidates == Front.of(expected).candidates
    assert read_chosen(runs[0]).keys() == read_chosen(runs[1]).keys()
    for one, other in zip(*(read_chosen(run).values() for run in runs), strict=True):
        assert (one.id, one.loss) == (other.id, other.loss)
    for one, other in zip(*(read_results(run) for run in runs), strict=True):
        assert one.network == other.network
        assert one.values("val_loss") == other.values("val_loss")
        assert timeless(one.runs[0].history) == timeless(other.runs[0].history)


def recorded(path: Path) -> dict[str, Any]:
    """All that MLflow holds, but for times: by the name of the run, which no two have."""
    client = MlflowClient(f"sqlite:///{path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs(
        [experiment.experiment_id], run_view_type=ViewType.ALL, max_results=1000
    )
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(runs)
    found: dict[str, Any] = {}
    for run in runs:
        metrics = {
            name: [(point.step, point.value) for point in history(client, run.info.run_id, name)]
            for name in run.data.metrics
            if not name.endswith("seconds")
        }
        parent = run.data.tags.get("mlflow.parentRunId")
        found[str(run.info.run_name)] = {
            "status": (run.info.status, run.info.lifecycle_stage),
            "parent": names[parent] if parent else None,
            "params": run.data.params,
            "metrics": metrics,
            "artifacts": {entry.path for entry in client.list_artifacts(run.info.run_id)},
        }
    versions = client.search_model_versions("name='tiny'")
    found["models"] = sorted(names[version.run_id] for version in versions)
    return found


def history(client: MlflowClient, run_id: str, name: str) -> list[Any]:
    return sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)


def files(path: Path) -> set[str]:
    """The names of all files of the run directory, each of which is whole."""
    directory, found = path / "runs" / "tiny", set[str]()
    for file in directory.rglob("*"):
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".jsonl":
            assert [json.loads(line) for line in file.read_text().splitlines()]
        elif file.suffix == ".safetensors":
            assert load_file(file)
        # Every life has a number there; a page's draft stays for an hour.
        draft = file.name.startswith(f".{PAGE_FILE}{DRAFT}")
        if file.is_file() and file.name != "run.lock" and not draft:
            found.add(str(file.relative_to(directory)))
    return found
