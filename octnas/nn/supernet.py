"""The weight-sharing network: one model, one architecture active at a time."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from octnas.architecture import Architecture
from octnas.errors import ArchitectureError
from octnas.nn.backbone import create_backbone
from octnas.nn.conv import OctaveConv2d
from octnas.nn.octavize import octavize, set_alphas
from octnas.nn.roles import add_roles, fold_roles
from octnas.nn.weights import load_weights
from octnas.space import SearchSpace


def build(architecture: Architecture, *, seed: int, weights: str = "") -> nn.Module:
    """A freshly initialised network.

    Weights come from timm's initialisation and depend on the seed and the backbone alone, not on
    α: all architectures of a backbone start at the same point.

    Args:
        architecture: what to build.
        seed: of the initialisation; the global random state is left as it was.
        weights: in the place of the initialisation, see `octnas.nn.backbone.create_backbone`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = {"in_chans": architecture.input_size[0], **architecture.backbone_args}
        model = create_backbone(architecture.backbone, args, weights=weights)
    return octavize(model, architecture)


def build_supernet(
    space: SearchSpace, *, seed: int, by_role: bool = False, weights: str = ""
) -> nn.Module:
    """A freshly initialised supernet of a search space, with its first choices active.

    Args:
        space: what it holds.
        seed: of the initialisation.
        by_role: with values by role and scales of the paths, see `octnas.nn.roles`.
        weights: what it begins with, see `octnas.nn.backbone.create_backbone`.
    """
    supernet = build(space.architecture({}), seed=seed, weights=weights)
    return add_roles(supernet) if by_role else supernet


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet on disk; picklable, so that any process can load it.

    Attributes:
        space: what it holds.
        weights: file of its weights.
        by_role: whether it has values by role.
    """

    space: SearchSpace
    weights: Path
    by_role: bool

    def load(self) -> nn.Module:
        """The supernet, with its first choices active."""
        supernet = build_supernet(self.space, seed=0, by_role=self.by_role)
        load_weights(supernet, self.weights)
        return supernet


def activate(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> None:
    """Make one architecture active, in place and in microseconds; weights are not touched.

    Args:
        supernet: a model that `octnas.octavize` has made.
        architecture: or α by site; sites that are not named go to 0.

    Raises:
        ArchitectureError: an unknown site, α outside [0, 1], or an `Architecture` whose
            ``channel_multiple`` or ``stride_mode`` is not the supernet's; nothing has been
            changed then.
    """
    if not isinstance(architecture, Architecture):
        set_alphas(supernet, architecture)
        return
    conv = next((m for m in supernet.modules() if isinstance(m, OctaveConv2d)), None)
    for key in ("channel_multiple", "stride_mode"):
        wanted, found = getattr(architecture, key), getattr(conv, key, None)
        if wanted != found:
            raise ArchitectureError(f"{key}: found {wanted!r}, the supernet's is {found!r}")
    set_alphas(supernet, architecture.alphas)


def subnet(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> nn.Module:
    """A copy of the supernet, weights included, with one architecture active.

    It computes what the supernet computes with that architecture, and has timm's keys.
    """
    network = copy.deepcopy(supernet)
    activate(network, architecture)
    return fold_roles(network)
