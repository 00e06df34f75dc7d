"""Architecture files and exported folders, checked against the network they name."""

from pathlib import Path

from torch import nn

from octnas.errors import ArchitectureError, OctnasError
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build
from octnas.nn.weights import check_finite, load_weights
from octnas.space.architecture import Architecture
from octnas.space.search_space import SearchSpace

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "model.safetensors"


def load(folder: str | Path) -> nn.Module:
    """The network of an exported folder, in eval mode; needs torch and timm only.

    Args:
        folder: contains ``architecture.json`` and ``model.safetensors``.

    Raises:
        ArchitectureError: as `read_architecture`; or the weights are missing, not finite, or
            another network's.
    """
    folder = Path(folder)
    model = build(read_architecture(folder / ARCHITECTURE_FILE), seed=0)
    load_weights(model, folder / WEIGHTS_FILE)
    check_finite(model, folder / WEIGHTS_FILE)
    return model.eval()


def read_architecture(path: str | Path) -> Architecture:
    """The architecture in a file, or in an exported folder.

    Raises:
        ArchitectureError: in one line: the file is missing or not an architecture, its backbone or
            a site does not exist, or an α does not give a whole number of low channels.
    """
    path = Path(path)
    file = path / ARCHITECTURE_FILE if path.is_dir() else path
    architecture = Architecture.load(file)
    try:
        space_of(architecture).check_quantized(architecture)
    except OctnasError as error:
        raise ArchitectureError(f"{file}: {' '.join(str(error).split())}") from error
    return architecture


def space_of(architecture: Architecture) -> SearchSpace:
    """The search space of an architecture's backbone with α 0 and 1 at every site."""
    return search_space(
        architecture.backbone,
        architecture.input_size,
        alphas=(0.0, 1.0),
        backbone_args=dict(architecture.backbone_args),
        fixed={},
        channel_multiple=architecture.channel_multiple,
        stride_mode=architecture.stride_mode,
    )
