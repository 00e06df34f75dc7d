"""A network's weights on disk."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from octnas.errors import ArchitectureError
from octnas.io.files import write_bytes

# Not those of 8 bits, which need scales.
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same backbone.

    Raises:
        ArchitectureError: the file cannot be read, or holds other weights or types.
    """
    try:
        state = load_file(path)
        own = model.state_dict()
        # torch would silently cast quantised or complex weights.
        for name in state.keys() & own.keys():
            found = state[name].dtype
            allowed = _FLOATS if own[name].is_floating_point() else (own[name].dtype,)
            if found not in allowed:
                types = " or ".join(str(one).removeprefix("torch.") for one in allowed)
                raise ArchitectureError(
                    f"{path}: {name}: found {str(found).removeprefix('torch.')}, allowed: {types}"
                )
        model.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise ArchitectureError(f"{path}: cannot be read ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(f"{path}: does not fit the architecture: {reason}") from error


def check_finite(model: nn.Module, source: Path | str) -> None:
    """Raise `ArchitectureError` if weights are NaN or infinite; it says where they come from."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ArchitectureError(f"{source}: {name}: not all values are finite")
