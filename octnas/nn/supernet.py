"""The weight-sharing network: one model, one architecture active at a time."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from octnas.architecture import Architecture
from octnas.nn.octavize import octavize, set_alphas
from octnas.nn.shapes import create_backbone
from octnas.space import SearchSpace


def build(architecture: Architecture, *, seed: int) -> nn.Module:
    """A freshly initialised network.

    Weights come from timm's initialisation and depend on the seed and the backbone alone, not on
    α: all architectures of a backbone start at the same point.

    Args:
        architecture: what to build.
        seed: of the initialisation; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_backbone(architecture.backbone, architecture.backbone_args)
    return octavize(model, architecture)


def build_supernet(space: SearchSpace, *, seed: int) -> nn.Module:
    """A freshly initialised supernet of a search space, with its first choices active."""
    return build(space.architecture({}), seed=seed)


def activate(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> None:
    """Make one architecture active, in place and in microseconds; weights are not touched.

    Args:
        supernet: a model that `octnas.octavize` has made.
        architecture: or α by site; sites that are not named go to 0.
    """
    given = architecture.alphas if isinstance(architecture, Architecture) else architecture
    set_alphas(supernet, given)


def subnet(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> nn.Module:
    """A copy of the supernet, weights included, with one architecture active."""
    network = copy.deepcopy(supernet)
    activate(network, architecture)
    return network
