"""Octave networks in torch; importing this registers octnas's models with timm."""

from octnas.nn import models as models
from octnas.nn.conv import OctaveConv2d
from octnas.nn.octave import OctaveTensor
from octnas.nn.octavize import octavize
from octnas.nn.supernet import activate, build, build_supernet, subnet

__all__ = [
    "OctaveConv2d",
    "OctaveTensor",
    "activate",
    "build",
    "build_supernet",
    "octavize",
    "subnet",
]
