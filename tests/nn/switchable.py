"""Switchable supernets with random values for both uses of each channel."""

import torch
from torch import nn

from octnas.nn.octavize import octavize
from octnas.nn.supernet import make_switchable
from tests.nn.families import create, site_names

ALPHAS = (0.0, 0.5, 1.0)


def randomise_switchable(model: nn.Module, seed: int = 1) -> nn.Module:
    """Values for low channels, and scales of the paths, that differ from all others."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        last = name.rpartition(".")[2]
        if last in ("low_weight", "low_running_var", "path_scales"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif last in ("low_bias", "low_running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) / 2)
    return model


def switchable_supernet(name: str) -> nn.Module:
    return randomise_switchable(make_switchable(octavize(create(name), 0.0)))


def uniform(model: nn.Module, alpha: float) -> dict[str, float]:
    return dict.fromkeys(site_names(model), alpha)
