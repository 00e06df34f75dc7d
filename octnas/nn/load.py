"""An exported folder back into a network."""

from pathlib import Path

from torch import nn

from octnas.nn.reading import ARCHITECTURE_FILE as ARCHITECTURE_FILE
from octnas.nn.reading import read_architecture
from octnas.nn.supernet import build
from octnas.nn.weights import check_finite, load_weights

WEIGHTS_FILE = "model.safetensors"


def load(folder: str | Path) -> nn.Module:
    """The network of an exported folder, in eval mode; needs torch and timm only.

    Args:
        folder: holds ``architecture.json`` and ``model.safetensors``.

    Raises:
        ArchitectureError: a file is missing or does not hold what it should: an unknown schema
            version or site, an α off the grid, weights of another network
            or such as are not finite.
    """
    folder = Path(folder)
    model = build(read_architecture(folder / ARCHITECTURE_FILE), seed=0)
    load_weights(model, folder / WEIGHTS_FILE)
    # Not where a run reads its own: those it judges by the losses that they give.
    check_finite(model, folder / WEIGHTS_FILE)
    return model.eval()
