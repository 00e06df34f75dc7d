"""An exported folder back into a network."""

from pathlib import Path

from torch import nn

from octnas.architecture import Architecture
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "model.safetensors"


def load(folder: str | Path) -> nn.Module:
    """The network of an exported folder, in eval mode; needs torch and timm only.

    Args:
        folder: holds ``architecture.json`` and ``model.safetensors``.

    Raises:
        ArchitectureError: a file is missing or does not hold what it should.
    """
    folder = Path(folder)
    architecture = Architecture.load(folder / ARCHITECTURE_FILE)
    model = build(architecture, seed=0)
    load_weights(model, folder / WEIGHTS_FILE)
    return model.eval()
