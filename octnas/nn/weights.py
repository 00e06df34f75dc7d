"""A network's weights on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from octnas.errors import ArchitectureError
from octnas.io.files import write_bytes

# Those of 8 bits come with scales, which nothing here applies.
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same backbone.

    Raises:
        ArchitectureError: the file cannot be read, or holds the weights of another network, or
            numbers that are none.
    """
    try:
        state = load_file(path)
        _check_types(model, state, path)
        model.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise ArchitectureError(f"{path}: cannot be read ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(f"{path}: does not fit the architecture: {reason}") from error


def _check_types(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what torch would cast without a word: quantised, truncated or complex weights."""
    own = model.state_dict()
    for name, value in state.items():
        if name not in own:
            continue
        allowed = _FLOATS if own[name].is_floating_point() else (own[name].dtype,)
        if value.dtype not in allowed:
            words = " or ".join(str(one).removeprefix("torch.") for one in allowed)
            found = str(value.dtype).removeprefix("torch.")
            raise ArchitectureError(f"{path}: {name}: found {found}, allowed: {words}")


def check_finite(model: nn.Module, path: Path) -> None:
    """Refuse weights with which a network computes nothing.

    Raises:
        ArchitectureError: NaN or an infinity is among them.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ArchitectureError(f"{path}: {name}: not all of its numbers are finite")
