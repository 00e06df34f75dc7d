"""Exported networks as MLflow models, loaded by their alias."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from octnas.nn.load import load
from octnas.pipeline.records import read_results
from octnas.pipeline.stages import run_stages
from octnas.results.networks import SEARCHED
from tests.pipeline.test_tracking_of_runs import runs_of
from tests.pipeline.tiny import open_tiny

# Without octnas, and with MLflow set to refuse pickle.
LOAD = """
import json, sys
sys.modules["octnas"] = None
import mlflow, torch
mlflow.set_tracking_uri(sys.argv[1])
network = mlflow.pytorch.load_model(sys.argv[2])
images = torch.load(sys.argv[3], weights_only=True)
print(json.dumps(network(images).tolist()))
"""


def loaded_elsewhere(uri: str, model: str, images: torch.Tensor, folder: Path) -> torch.Tensor:
    """Logits of a registered model, computed in a new process without pickle."""
    torch.save(images, folder / "images.pt")
    environment = {
        **{name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    arguments = ["-c", LOAD, uri, model, str(folder / "images.pt")]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_an_alias_gives_the_logits_of_the_exported_folder(finished: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{finished}/runs/mlflow.db"
    size = open_tiny(finished).space.input_size
    images = torch.randn((3, *size), generator=torch.Generator().manual_seed(1))
    network = load(finished / "runs/tiny/export/searched-uniform-0.5")
    with torch.inference_mode():
        expected = network(images)
    assert expected.abs().max() > 1e-2  # untrained they are about 1e-9
    assert (expected - expected[0]).abs().max() > 1e-3
    found = loaded_elsewhere(uri, "models:/tiny@uniform-0-5", images, tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_versions_and_aliases(finished: Path) -> None:
    client = MlflowClient(f"sqlite:///{finished}/runs/mlflow.db")
    results = read_results(open_tiny(finished))
    runs = runs_of(finished)
    versions = client.search_model_versions("name = 'tiny'")
    by_run = {version.run_id: version for version in versions}
    assert len(versions) == len(results) == len(by_run)
    names = {result.network.name: runs[result.network.name].info.run_id for result in results}
    assert set(by_run) == set(names.values())
    searched = {
        f"uniform-{result.network.budget.split()[-1].replace('.', '-')}": by_run[
            names[result.network.name]
        ].version
        for result in results
        if result.network.role == SEARCHED
    }
    assert set(searched) == {"uniform-0-5", "uniform-0-75"}
    found = client.get_registered_model("tiny").aliases
    assert {alias: str(version) for alias, version in found.items()} == {
        alias: str(version) for alias, version in searched.items()
    }
    for result in results:
        tags = by_run[names[result.network.name]].tags
        assert tags["octnas.role"] == result.network.role
        assert tags["octnas.budget"] == result.network.budget


def test_signature_input_example_and_format(finished: Path) -> None:
    from mlflow.models import Model

    run = open_tiny(finished)
    channels, height, width = run.space.input_size
    folder = finished / "runs/tiny/mlflow/models/vanilla"
    assert {file.name for file in (folder / "data").iterdir()} == {"model.pt2"}
    model = Model.load(str(folder))
    assert model.signature is not None
    [images], [logits] = model.signature.inputs.inputs, model.signature.outputs.inputs
    assert images.shape == (-1, channels, height, width)
    assert logits.shape == (-1, 10)
    example = model.load_input_example(str(folder))
    assert example.shape == (2, channels, height, width)


@pytest.mark.slow
def test_the_same_weights_are_registered_once(finished: Path) -> None:
    """Also if the export is repeated after an interruption."""
    client = MlflowClient(f"sqlite:///{finished}/runs/mlflow.db")
    before = {v.version: v.run_id for v in client.search_model_versions("name = 'tiny'")}
    (finished / "runs/tiny/export/stage.json").unlink()
    run_stages(open_tiny(finished), ("export",))
    after = {v.version: v.run_id for v in client.search_model_versions("name = 'tiny'")}
    assert after == before
