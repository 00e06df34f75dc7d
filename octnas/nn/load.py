"""An exported folder back into a network."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from octnas.architecture import Architecture
from octnas.errors import ArchitectureError
from octnas.nn.supernet import build

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
    path = folder / WEIGHTS_FILE
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ArchitectureError(f"{path}: cannot be read ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(f"{path}: does not fit the architecture: {reason}") from error
    return model.eval()
