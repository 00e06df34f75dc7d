"""A run's original, pruned by other rules than uniform L2, and fine-tuned as the run's networks.

    python tests/benchmarks/pruners.py RUN --by taylor
    python tests/benchmarks/pruners.py RUN --by fastnas   # needs nvidia-modelopt

``taylor`` is Torch-Pruning's GroupTaylor with all channels of the network ranked together, and
``fastnas`` is ModelOpt's FastNAS. Both have about the MACs of the network that was searched for the
first budget, which the run must have trained; differences are paired by seed.
"""

import argparse
import copy
import warnings
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from octnas.data.images import open_images
from octnas.nn.backbone import create_backbone
from octnas.nn.cost import cost
from octnas.nn.octavize import supported_convs
from octnas.nn.pruned import BACKBONE
from octnas.nn.weights import load_weights, save_weights
from octnas.pipeline.retrain import original, read_plan
from octnas.pipeline.run import Run, open_run
from octnas.results.networks import SEARCHED, SeedResult
from octnas.runtime.progress import Quiet
from octnas.space.architecture import Architecture
from octnas.training.scoring import evaluate
from octnas.training.standalone import (
    Original,
    Training,
    pruned_weights,
    train_one,
    training_folder,
)

# Of images for gradients and batch norms, and of shares of channels that are tried.
_BATCH, _BATCHES, _STEPS = 128, 8, 256
_DIVISOR = 8  # of the numbers of channels that FastNAS tries


def by_taylor(
    whole: ResNet, vanilla: Architecture, batches: list[tuple[Tensor, Tensor]], least: int
) -> nn.Module:
    """The smallest network with at least as many MACs, by one step of global pruning."""
    import torch_pruning

    whole.eval().zero_grad()
    for images, labels in batches:
        F.cross_entropy(whole(images), labels).backward()

    def pruned(step: int) -> ResNet:
        model = copy.deepcopy(whole)
        for one, other in zip(model.parameters(), whole.parameters(), strict=True):
            one.grad = other.grad
        torch_pruning.pruner.BasePruner(
            model,
            batches[0][0][:1],
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=1 - step / _STEPS,
            max_pruning_ratio=0.9,
            ignored_layers=[model.fc],
        ).step()
        return model

    found = bisect_left(
        range(1, _STEPS), least, key=lambda step: cost(shape(pruned(step), vanilla)).cost.macs
    )
    return pruned(1 + found)


def by_fastnas(
    whole: ResNet, batches: list[tuple[Tensor, Tensor]], share: float, score: Callable[..., float]
) -> nn.Module:
    """The best network by its sensitivities that has at most a share of the MACs."""
    import modelopt.torch.prune as modelopt_prune

    settings = {"nn.Conv2d": {"*": {"channel_divisor": _DIVISOR}}, "nn.BatchNorm2d": {"*": {}}}
    model, _ = modelopt_prune.prune(
        model=whole,
        mode=[("fastnas", settings)],
        constraints={"flops": f"{100 * share:.2f}%"},
        dummy_input=batches[0][0][:1],
        config={
            "data_loader": batches,
            "collect_func": lambda batch: batch[0],
            "score_func": score,
            "checkpoint": None,
            "verbose": False,
        },
    )
    return model


def shape(model: nn.Module, vanilla: Architecture) -> Architecture:
    """The shape of a pruned network."""
    convs = supported_convs(create_backbone(vanilla.backbone, vanilla.backbone_args, meta=True))
    widths = {conv.site_out: model.get_submodule(conv.name).out_channels for conv in convs}
    args = {"backbone": vanilla.backbone, **vanilla.backbone_args, "widths": widths}
    return Architecture(BACKBONE, vanilla.input_size, {}, args, stride_mode="timm")


def compare(run: Run, rule: str) -> None:
    """Prune, fine-tune with every seed that the searched network has, and print all results."""
    from_run, device = original(run), torch.device("cpu")
    images = open_images(run.data, run.space.input_size, device)
    stage = run.directory.stage("retrain")
    searched = next(one for one in read_plan(run) if one.role == SEARCHED)
    vanilla = run.space.vanilla
    whole = create_backbone(vanilla.backbone, vanilla.backbone_args)
    load_weights(whole, from_run.weights)
    assert isinstance(whole, ResNet)
    batches = [
        batch for batch, _ in zip(images.batches("train", _BATCH), range(_BATCHES), strict=False)
    ]
    if rule == "taylor":
        model = by_taylor(whole, vanilla, batches, searched.cost.macs)
    else:
        share = searched.cost.macs / run.space.vanilla_macs

        def score(one: nn.Module) -> float:
            return evaluate(one, images.batches("search_val", 2 * _BATCH), device).metrics["top1"]

        model = by_fastnas(whole, batches, share, score)
    architecture = shape(model, vanilla)
    folder = stage / rule
    save_weights(model, pruned_weights(folder, architecture))
    taught_by = Original(vanilla, from_run.weights, folder)
    macs = cost(architecture).cost.macs
    print(f"{rule}: {macs / 1e6:.1f} M MACs; searched: {searched.cost.macs / 1e6:.1f} M MACs")
    print("| seed | loss | top-1, % | searched − it, loss | points |")
    print("| --- | --- | --- | --- | --- |")
    for seed in run.config.retrain.seeds:
        own = Training(
            searched.architecture, seed, training_folder(stage, searched.architecture.id, seed)
        ).result
        if own is not None:
            place = training_folder(folder, architecture.id, seed)
            found = trained(Training(architecture, seed, place, original=taught_by), run)
            loss, top1 = (found.metrics[name] for name in ("val_loss", "val_top1"))
            ahead = own.metrics["val_loss"] - loss, 100 * (own.metrics["val_top1"] - top1)
            print(f"| {seed} | {loss:.4f} | {100 * top1:.2f} | {ahead[0]:+.4f} | {ahead[1]:+.2f} |")


def trained(training: Training, run: Run) -> SeedResult:
    """The result of a training, which is done or resumed if it is not there."""
    found = training.result
    return found or train_one(training, run.data, run.config.retrain, "cpu")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--by", choices=("taylor", "fastnas"), required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with open_run(given.run, progress=Quiet(print)) as opened:
        compare(opened, given.by)
