"""A trained ResNet with fewer channels, chosen by Torch-Pruning: what octave channels compete with.

Torch-Pruning (arXiv 2301.12900) finds the channels that can only be removed together, and how
important they are: the mean of their squared weights over all layers that write or read them. Every
site keeps the same share of its channels, the most important ones, rounded up.
"""

import warnings
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, lcm
from pathlib import Path

import torch
from timm.layers import SEModule
from timm.models.resnet import ResNet
from torch import Tensor, nn

from octnas.errors import UnsupportedModelError
from octnas.nn.backbone import create_backbone
from octnas.nn.channel_order import Orders, take_channels
from octnas.nn.load import space_of
from octnas.nn.octavize import supported_convs
from octnas.nn.weights import load_weights
from octnas.space.architecture import Architecture
from octnas.space.budgets import costs_of

BACKBONE = "pruned_resnet"
"""The model of `octnas.nn.models` that builds a pruned network from its widths."""

_STEPS = 2048  # of the share of channels
_SIDE = 64  # pixels of the image that Torch-Pruning traces


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        architecture: its shape; its backbone is `BACKBONE`.
        share: of its channels that every site keeps, before rounding.
        model: timm's model with the weights that are left.
    """

    architecture: Architecture
    share: float
    model: nn.Module


def pruned_network(
    whole: Architecture,
    weights: Path,
    reaches: Mapping[str, int],
    multiple: int = 1,
) -> Pruned | None:
    """Prune a trained network to the smallest share of channels that reaches one of some costs.

    Args:
        whole: the network; its α do not matter.
        weights: file of its state dict.
        reaches: ``"macs"``, ``"activation"`` or ``"peak"`` (bytes), below which it would not be a
            fair baseline.
        multiple: channels are rounded up to a multiple of this, or to all.

    Returns:
        None if the network cannot be pruned, or not without going below all of them.

    Raises:
        UnsupportedModelError: Torch-Pruning does not understand the network.
        ArchitectureError: the weights cannot be read, or are another network's.
    """
    model = create_backbone(whole.backbone, whole.backbone_args)
    load_weights(model, weights)
    ranked = ranked_channels(model)

    def kept(step: int) -> Orders:
        return {site: _most_important(order, step, multiple) for site, order in ranked.items()}

    @cache
    def fits(architecture: Architecture) -> bool:
        costs = costs_of(space_of(architecture))
        return any(costs[name].vanilla >= least for name, least in reaches.items())

    def shape(step: int) -> Architecture:
        return _architecture(whole, kept(step))

    step = 1 + bisect_left(range(1, _STEPS), True, key=lambda step: fits(shape(step)))
    if shape(step) == shape(_STEPS):
        return None
    take_channels(model, kept(step))
    return Pruned(shape(step), step / _STEPS, model)


def _architecture(whole: Architecture, kept: Orders) -> Architecture:
    """The shape of a pruned network; one that was pruned before only gets other widths."""
    widths = {site: len(order) for site, order in kept.items()}
    return Architecture(
        backbone=BACKBONE,
        input_size=whole.input_size,
        alphas={},
        backbone_args={"backbone": whole.backbone, **whole.backbone_args, "widths": widths},
        stride_mode="timm",
    )


def _most_important(order: Tensor, step: int, multiple: int) -> Tensor:
    """The share ``step / _STEPS`` of a site's channels, in the order that they have in the network.

    Args:
        order: channels by descending importance, ``(groups, C / groups)``; each group keeps as
            many.
        step: 1 to `_STEPS`.
        multiple: see `pruned_network`.
    """
    groups, unit = len(order), lcm(multiple, len(order))
    count = min(order.numel(), unit * ceil(order.numel() * step / (_STEPS * unit)))
    return order[:, : count // groups].sort(dim=1).values.flatten()


def ranked_channels(model: nn.Module) -> dict[str, Tensor]:
    """The channels of every site by descending importance, as Torch-Pruning sees it.

    Args:
        model: a timm ResNet on the CPU, not yet an octave network.

    Returns:
        By site, ``(groups, C / groups)`` int64. As Torch-Pruning does, the groups of a grouped
        convolution are ranked by their mean.

    Raises:
        UnsupportedModelError: `octnas.octavize` does not take the model, or Torch-Pruning does not
            understand it.
    """
    convs = {model.get_submodule(conv.name): conv for conv in supported_convs(model)}
    assert isinstance(model, ResNet)
    images = torch.zeros(1, model.in_chans, _SIDE, _SIDE)
    # The classes, and the narrow layers inside of channel attention.
    kept = [module for module in model.modules() if isinstance(module, nn.Linear)]
    kept += [module.fc1 for module in model.modules() if isinstance(module, SEModule)]
    ranked: dict[str, Tensor] = {}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        import torch_pruning

        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, example_inputs=(images,))
        for group in graph.get_all_groups(ignored_layers=kept):
            values = importance(group)
            for dependency, indices in group:
                conv = convs.get(dependency.target.module)
                if conv is None or not graph.is_out_channel_pruning_fn(dependency.handler):
                    continue
                if [*indices] != [*range(len(values))]:
                    raise UnsupportedModelError(f"{conv.name}: Torch-Pruning mixes its channels")
                means = values.view(conv.split_groups, -1).mean(dim=0)
                order = means.sort(descending=True, stable=True).indices
                starts = torch.arange(conv.split_groups)[:, None] * len(order)
                ranked[conv.site_out] = order + starts
    if missing := {conv.site_out for conv in convs.values()} - set(ranked):
        raise UnsupportedModelError(f"Torch-Pruning removes no channels of {min(missing)}")
    return ranked
