"""The original pruned, as a baseline."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import octnas.training.standalone as trainings
from octnas.errors import ConfigError
from octnas.nn.backbone import create_backbone
from octnas.nn.load import read_architecture
from octnas.pipeline.records import read_results
from octnas.pipeline.report import gather
from octnas.pipeline.retrain import _pruned, original, read_plan
from octnas.pipeline.run import Run
from octnas.pipeline.stages import run_stages
from octnas.report.tables import retrained_rows
from octnas.results.front import Candidate
from octnas.results.networks import PRUNED, SEARCHED, Network, searched
from octnas.space.costs import Bound, Budget
from octnas.training.loop import Backward, distilled
from octnas.training.standalone import Training, _initial
from tests.nn.reference import randomise
from tests.pipeline.test_convert import open_trained
from tests.pipeline.tiny import OFF, open_tiny
from tests.training.resuming import BrokenOffError, timeless, until

QUICK = ("retrain.seeds=[0]", "search.trials=8", "retrain.baselines=[uniform, pruned]")
WIDE = "space.backbone_args.channels=[16, 24, 32]"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("torch_pruning")


def checkpoint(folder: Path, channels: list[int]) -> Path:
    args = {"layers": [1, 1, 1], "channels": channels, "in_chans": 1, "num_classes": 10}
    torch.manual_seed(0)
    path = folder / "original.safetensors"
    save_file(randomise(create_backbone("thumbnail_resnet", args)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def searched_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a run that is about to retrain, and the weights that it began with."""
    path = tmp_path_factory.mktemp("pruned")
    weights = checkpoint(path, [4, 8, 8])
    run_stages(open_trained(path, weights, OFF, *QUICK), ("search",))
    return path, weights


def wide(tmp_path: Path, *overrides: str, lines: list[str] | None = None) -> Run:
    """A run with wider networks whose original is sorted."""
    weights = checkpoint(tmp_path, [16, 24, 32])
    run = open_trained(tmp_path, weights, *QUICK, WIDE, *overrides, lines=lines, stages=("data",))
    run_stages(run, ("data",))
    return run


def pruned_for(run: Run, budget: Budget, alpha: float = 0.5) -> tuple[Network, Network | None]:
    """A network as if it had been found for a budget, and the pruned one."""
    own = searched(run.space, budget, run.space.uniform(alpha))
    chosen = Candidate(own.architecture.id, own.architecture.alphas, own.cost.macs, loss=1.0)
    return own, next(_pruned(run, budget, chosen), None)


def test_it_starts_from_what_is_left_of_the_original(tmp_path: Path) -> None:
    run = wide(tmp_path)
    _, pruned = pruned_for(run, Budget("half", 1))
    assert pruned is not None
    assert pruned_for(run, Budget("half", 1))[1] == pruned
    whole = original(run)
    path = whole.weights_for(pruned.architecture)
    assert path is not None
    left, before = load_file(path), load_file(whole.weights)
    for seed in (0, 1):
        made = _initial(Training(pruned.architecture, seed, tmp_path, original=whole)).state_dict()
        assert all(torch.equal(made[name], value) for name, value in left.items())
    kernels, all_kernels = (
        {tuple(kernel.flatten().tolist()) for kernel in state["conv1.weight"]}
        for state in (left, before)
    )
    assert kernels
    assert kernels < all_kernels
    assert left["conv1.weight"].abs().max() > 0.1
    assert whole.weights_for(run.space.vanilla) == whole.weights
    _, other = pruned_for(run, Budget("less", 1), alpha=1.0)
    assert other is not None
    assert other.architecture.id != pruned.architecture.id


@pytest.mark.slow
def test_it_is_pruned_fine_tuned_and_exported(
    searched_run: tuple[Path, Path], tmp_path: Path
) -> None:
    before, weights = searched_run
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    lines: list[str] = []
    formats = ("export.formats=[timm, onnx, pt2]", "export.precisions=[fp32]")
    run = open_trained(tmp_path, weights, *QUICK, *formats, lines=lines)
    run_stages(run, ("retrain", "export", "report"))
    results = read_results(run)
    networks = {(one.network.role, one.network.budget): one for one in results}
    for budget in run.budgets:
        own = networks[SEARCHED, budget.name].network
        pruned = networks[PRUNED, budget.name].network
        assert own.cost.macs <= pruned.cost.macs < run.space.vanilla_macs
        assert pruned.cost.params < own.cost.params
        assert f"pruned-{own.slug.partition('-')[2]}" == pruned.slug
        folder = run.directory.stage("export") / pruned.slug
        assert read_architecture(folder) == pruned.architecture
        assert {"model.onnx", "model.pt2"} <= {path.name for path in folder.iterdir()}
        assert "fine-tuned from" in " ".join((folder / "README.md").read_text().split())
        said = f"retrain: {budget.name}: pruned; "
        assert sum(line.startswith(said) for line in lines) == 1
    text = (run.directory.stage("report") / "report.md").read_text()
    assert "the pruned original" in text
    (row, *_) = [row for row in retrained_rows(gather(run)) if row["role"] == PRUNED]
    assert row["initialisation"] == "from the original"
    assert len(lines) == len(set(lines))


@pytest.mark.slow
def test_its_training_goes_on_without_torch_pruning(
    searched_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, weights = searched_run
    often = (*QUICK, "retrain.recipe.checkpoint_seconds=0")
    for copy in ("whole", "broken"):
        shutil.copytree(before, tmp_path / copy)
    run_stages(open_trained(tmp_path / "whole", weights, *often), ("retrain",))
    expected = read_results(open_trained(tmp_path / "whole", weights, *often))
    begun = iter(range(100))

    def broken(*args: Any) -> Backward:
        backward = distilled(*args)
        # The first budget's searched and uniform networks are done, its pruned one is not.
        return until(3, backward) if next(begun) == 2 else backward

    with monkeypatch.context() as patch:
        patch.setattr(trainings, "distilled", broken)
        with pytest.raises(BrokenOffError):
            run_stages(open_trained(tmp_path / "broken", weights, *often), ("retrain",))
    run = open_trained(tmp_path / "broken", weights, *often)
    (halted,) = run.directory.stage("retrain").glob("*/*/checkpoints")
    assert halted.parents[1].name in {
        one.architecture.id for one in read_plan(run) if one.role == PRUNED
    }
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    run_stages(run, ("retrain",))
    for one, other in zip(read_results(run), expected, strict=True):
        assert one.network == other.network
        assert one.values("val_loss") == other.values("val_loss")
        assert timeless(one.runs[0].history) == timeless(other.runs[0].history)


def test_it_costs_what_the_budget_bounds(tmp_path: Path) -> None:
    run = wide(tmp_path)
    found = {
        cost: pruned_for(run, Budget(cost, 1, bound=Bound(cost, 1) if cost != "macs" else None))
        for cost in ("macs", "activation", "latency")
    }
    widths = {}
    for cost, (own, pruned) in found.items():
        assert pruned is not None
        widths[cost] = pruned.architecture.backbone_args["widths"]
        if cost == "activation":
            assert pruned.cost.activation_bytes >= own.cost.activation_bytes
            assert pruned.cost.activation_bytes < 1.2 * own.cost.activation_bytes
        else:
            assert pruned.cost.macs >= own.cost.macs
    assert widths["activation"] != widths["macs"]
    assert not any(width % 8 for width in widths["latency"].values())
    assert any(width % 8 for width in widths["macs"].values())


def test_channels_are_removed_by_the_multiple_of_the_space(tmp_path: Path) -> None:
    run = wide(tmp_path, "space.channel_multiple=4")
    _, pruned = pruned_for(run, Budget("macs", 1))
    assert pruned is not None
    widths = pruned.architecture.backbone_args["widths"].values()
    assert {width % 4 for width in widths} == {0}
    assert any(width % 8 for width in widths)


def test_what_cannot_be_pruned_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    run = wide(tmp_path, lines=lines)
    lines.clear()
    own, pruned = pruned_for(run, Budget("all", 1), alpha=0.0)
    assert pruned is None
    (line,) = lines
    macs = f"{own.cost.macs / 1e6:.3f}"
    assert line == (
        f"retrain: all: no channels of thumbnail_resnet can be removed so that it has at least "
        f"{macs} M MACs; no pruned network"
    )
    lines.clear()
    monkeypatch.setattr("torch_pruning.DependencyGraph.get_all_groups", lambda *_, **__: [])
    assert pruned_for(run, Budget("half", 1))[1] is None
    (line,) = lines
    assert line == (
        "retrain: half: no pruned network (Torch-Pruning removes no channels of layer1); left out"
    )


def test_it_needs_torch_pruning_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    run = open_trained(tmp_path, checkpoint(tmp_path, [4, 8, 8]), *QUICK)
    with pytest.raises(ConfigError) as caught:
        run_stages(run)
    message = str(caught.value)
    assert message.endswith(
        "retrain.baselines: found 'pruned', allowed: pruned only with Torch-Pruning: "
        'pip install "octnas[pruning]"'
    )
    assert not run.directory.stage("data").exists()


def test_it_needs_a_trained_network(tmp_path: Path) -> None:
    message = r"retrain\.baselines: found .*'pruned'.*, allowed: pruned only with space\.weights"
    with pytest.raises(ConfigError, match=message) as caught:
        open_tiny(tmp_path, *QUICK)
    assert "\n" not in str(caught.value)
