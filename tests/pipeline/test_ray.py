"""The same study, whoever evaluates."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.retrain import STOPPED_FILE, plan
from octnas.pipeline.stages import run_stages
from octnas.results.networks import FRONT
from octnas.results.validation_log import VALIDATION_LOG, count_validations
from octnas.training.standalone import WEIGHTS_FILE
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny


@pytest.mark.parametrize(
    "workers",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)],
)
def test_ray_gives_the_candidates_that_this_process_gives(
    finished: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    settings = ("search.executor=ray", f"search.workers={workers}", "tracking.enabled=false")
    run = open_tiny(tmp_path, *settings, fresh="search")
    run_stages(run, ("search",))
    here = open_tiny(finished)
    assert read_candidates(run) == read_candidates(here)
    assert read_chosen(run) == read_chosen(here)


@pytest.mark.slow
def test_rays_workers_train_the_supernet_that_processes_of_this_machine_do(tmp_path: Path) -> None:
    weights = []
    for executor in ("local", "ray"):
        together = ("supernet.processes=2", f"supernet.executor={executor}")
        run = open_tiny(tmp_path / executor, "tracking.enabled=false", "device=cpu", *together)
        run_stages(run, ("supernet",))
        weights.append(load_file(run.directory.stage("supernet") / WEIGHTS_FILE))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.slow
def test_networks_are_retrained_by_ray_as_by_this_process(finished: Path, tmp_path: Path) -> None:
    """From the command line, as users do it."""
    shutil.copytree(finished, tmp_path / "copy")
    changes = ("retrain.executor=ray", "tracking.enabled=false")
    settings = [part for one in (*TINY, *changes) for part in ("--set", one)]
    octnas = Path(sys.executable).with_name("octnas")
    command = [octnas, "retrain", EXPERIMENT, "--fresh", "retrain", *settings]
    subprocess.run(command, cwd=tmp_path / "copy", check=True)
    run = open_tiny(tmp_path / "copy", *changes)
    found, expected = read_results(run), read_results(open_tiny(finished))
    assert [one.network for one in found] == [one.network for one in expected]
    for one, other in zip(found, expected, strict=True):
        for metric in ("val_top1", "val_loss"):
            assert one.values(metric) == other.values(metric)
    # Every training is one look at val.
    ids = {one.network.architecture.id for one in found}
    looks = count_validations(run.directory.path / VALIDATION_LOG)
    assert looks["retrain"] == 2 * len(ids) * len(run.config.retrain.seeds)


@pytest.mark.slow
def test_dominated_networks_of_the_front_stop_early(finished: Path, tmp_path: Path) -> None:
    """What is left out is what was stopped, and never a searched network or a baseline."""
    shutil.copytree(finished, tmp_path / "copy")
    settings = (
        "retrain.executor=ray",
        "retrain.workers=1",
        "retrain.select=front",
        "retrain.halving={grace_epochs: 1, reduction: 4}",
        "retrain.recipe.epochs=4",
        "tracking.enabled=false",
    )
    run = open_tiny(tmp_path / "copy", *settings, fresh="retrain")
    run_stages(run, ("retrain",))
    planned = plan(run)
    whole = {one.network.name for one in read_results(run)}
    stopped = {path.parent.parent.name for path in run.directory.path.rglob(STOPPED_FILE)}
    assert whole == {one.name for one in planned if one.architecture.id not in stopped}
    assert stopped <= {one.architecture.id for one in planned if one.role == FRONT}
    assert {one.name for one in planned if one.role != FRONT} <= whole
    run_stages(open_tiny(tmp_path / "copy", *settings), ("retrain",))
