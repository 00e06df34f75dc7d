"""Short stand-alone trainings: what they begin with, and who does them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octnas.errors import ConfigError
from octnas.nn.supernet import build, subnet
from octnas.pipeline.proxies import read_proxies
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.pipeline.supernet import trained_supernet
from octnas.training.standalone import WEIGHTS_FILE
from tests.pipeline.tiny_ranking import open_ranking

OFF = "tracking.enabled=false"


def trained(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Weights by architecture."""
    folder = run.directory.stage("proxies")
    return {path.parent.name: load_file(path) for path in folder.glob(f"*/{WEIGHTS_FILE}")}


@pytest.mark.parametrize("weights", ["supernet", "scratch"])
def test_they_begin_with_inherited_weights_or_their_own(spoilable: Path, weights: str) -> None:
    """A learning rate of nearly nothing leaves what a training has begun with."""
    still = "proxies.recipe={epochs: 1, lr: 1.0e-12, warmup_epochs: 0}"
    overrides = (OFF, f"proxies.weights={weights}", still)
    run = open_ranking(spoilable, *overrides, fresh="proxies")
    run_stages(run, ("proxies",))
    found = trained(run)
    assert len(found) == len(read_proxies(run).candidates) == 4
    supernet = trained_supernet(run).load()
    for candidate in read_proxies(run).candidates:
        architecture = run.space.architecture(candidate.alphas)
        inherited = subnet(supernet, architecture).state_dict()
        fresh = build(architecture, seed=run.config.proxies.seed).state_dict()
        begun, other = (inherited, fresh) if weights == "supernet" else (fresh, inherited)
        kernels = [name for name, value in begun.items() if value.ndim == 4]
        assert len(kernels) > 3
        for name in kernels:
            kernel = found[architecture.id][name]
            assert float((kernel - begun[name]).abs().max()) < 1e-7, name
            assert float((kernel - other[name]).abs().max()) > 1e-6, name


def test_rays_workers_train_the_same(ranked: Path, spoilable: Path) -> None:
    overrides = (OFF, "proxies.executor=ray", "proxies.workers=2")
    run = open_ranking(spoilable, *overrides, fresh="proxies")
    run_stages(run, ("proxies",))
    before = open_ranking(ranked)
    losses = [
        [(one.id, one.loss, one.metrics["rank_top1"]) for one in read_proxies(made).candidates]
        for made in (run, before)
    ]
    assert losses[0] == losses[1]
    assert trained(run).keys() == trained(before).keys()
    for name, state in trained(before).items():
        assert all(torch.equal(trained(run)[name][key], value) for key, value in state.items())


def test_a_space_with_one_architecture_has_nothing_to_compare(tmp_path: Path) -> None:
    single = ("space.alphas=[0.5]", "space.budgets=[{uniform: 0.5}]")
    run = open_ranking(tmp_path, OFF, *single)
    with pytest.raises(ConfigError, match=r"proxies\.architectures: found 1, allowed: two or more"):
        run_stages(run, ("proxies",))
    assert run.directory.marker("proxies") is None
