"""A whole run without its MLflow server, and what `octnas sync` makes of it."""

from pathlib import Path

import pytest
import torch

from octnas.nn.load import load
from octnas.pipeline.opening import Run
from octnas.pipeline.records import read_results
from octnas.pipeline.stages import run_stages
from tests.cli.conftest import Octnas
from tests.pipeline.test_models_in_mlflow import loaded_elsewhere
from tests.pipeline.tiny import open_tiny
from tests.tracking.servers import Held, free_port, held, mlflow_server


@pytest.mark.slow
def test_a_whole_run_without_its_server_and_a_sync(octnas: Octnas, tmp_path: Path) -> None:
    port = free_port()
    uri, lines = f"http://127.0.0.1:{port}", list[str]()
    run = open_tiny(tmp_path, f"tracking.uri={uri}", lines=lines)
    run_stages(run)
    directory = tmp_path / "runs" / "tiny"
    assert [line for line in lines if "no MLflow server answers there" in line]
    assert f"`octnas sync {directory}` sends them" in lines[-1]
    away = octnas("sync", str(directory))
    assert away.code == 2
    assert len(away.err.splitlines()) == 1
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", port):
        result = octnas("sync", str(directory))
        assert result.code == 0, result.err
        networks = [result.network for result in read_results(run)]
        assert f"{len(networks)} models" in result.out
        first = check_records(run, port)
        assert octnas("sync", str(directory)).out == f"nothing to send to {uri}\n"
        assert held(port, "tiny") == first
        images = torch.randn((2, *run.space.input_size), generator=torch.Generator().manual_seed(1))
        network = load(directory / "export" / "searched-uniform-0.75")
        with torch.inference_mode():
            expected = network(images)
        assert expected.abs().max() > 1e-2
        found = loaded_elsewhere(uri, "models:/tiny@uniform-0-75", images, tmp_path)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def check_records(run: Run, port: int) -> Held:
    """What the server holds of a whole tiny run, exactly."""
    found = held(port, "tiny")
    networks = [result.network for result in read_results(run)]
    names = [network.name for network in networks]
    assert found.names == sorted(["tiny", "supernet", "search", *names])
    assert set(found.status.values()) == {"FINISHED"}
    assert found.parents == dict.fromkeys(["supernet", "search", *names], "tiny")
    assert found.metrics["supernet"] == {"train_loss": [1, 2], "lr": [1, 2]}
    assert found.metrics["search"]["macs"] == list(range(20))
    for name in names:
        for seed in (0, 1):
            assert found.metrics[name][f"seed_{seed}/train_loss"] == [1, 2]
        assert found.metrics[name]["val_top1"] == [2]
    assert "trials.json" in found.artifacts["search"]
    assert "report/figures/front.json" in found.artifacts["tiny"]
    assert found.versions == {"tiny": [str(1 + index) for index in range(len(networks))]}
    return found
