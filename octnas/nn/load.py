"""An exported folder back into a network.

Architecture files that people pass around, read and checked against the network they name.
"""

from pathlib import Path

from torch import nn

from octnas.errors import ArchitectureError, OctnasError
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build
from octnas.nn.weights import check_finite, load_weights
from octnas.space.architecture import Architecture
from octnas.space.search_space import SearchSpace

ARCHITECTURE_FILE = "architecture.json"


def read_architecture(path: str | Path) -> Architecture:
    """The architecture in a file, or in an exported folder.

    Raises:
        ArchitectureError: in one line: the file cannot be read, has an unknown schema version,
            names a network or a site that there is not, or an α off the grid.
    """
    path = Path(path)
    file = path / ARCHITECTURE_FILE if path.is_dir() else path
    architecture = Architecture.load(file)
    try:
        check_architecture(architecture)
    except OctnasError as error:
        raise ArchitectureError(f"{file}: {' '.join(str(error).split())}") from error
    return architecture


def check_architecture(architecture: Architecture) -> None:
    """Refuse what would be built as something else than what it says.

    Raises:
        ArchitectureError: a site that the backbone does not have, or an α off the grid.
        SettingError: a backbone that timm does not know, or arguments that it does not take.
        UnsupportedModelError: a backbone that octave feature maps cannot pass through.
    """
    space_of(architecture).check_grid(architecture)


def space_of(architecture: Architecture) -> SearchSpace:
    """The sites and convolutions of an architecture's backbone; each is 0 or 1 by choice."""
    return search_space(
        architecture.backbone,
        architecture.input_size,
        choices=(0.0, 1.0),
        backbone_args=dict(architecture.backbone_args),
        fixed={},
        channel_multiple=architecture.channel_multiple,
        stride_mode=architecture.stride_mode,
    )


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
