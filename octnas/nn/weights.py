"""A network's weights on disk."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from octnas.errors import ArchitectureError
from octnas.files import write_bytes


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same backbone.

    Raises:
        ArchitectureError: the file cannot be read, or holds the weights of another network.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ArchitectureError(f"{path}: cannot be read ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(f"{path}: does not fit the architecture: {reason}") from error
