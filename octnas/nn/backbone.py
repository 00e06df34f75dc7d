"""timm models by name: the plain networks that octave networks are made from."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import Parameter, signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import build_model_with_cfg, load_pretrained, load_state_dict
from torch import nn

from octnas.errors import SettingError
from octnas.settings import PRETRAINED

# What torch, safetensors and timm raise over a file that is torn or something else.
_UNREADABLE = (
    *(OSError, RuntimeError, LookupError, AttributeError, TypeError, ValueError, EOFError),
    *(UnpicklingError, SafetensorError, struct.error),
)
# What timm and torch raise over impossible arguments.
_IMPOSSIBLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(TypeError, ValueError),
)
# Arguments of timm's factory, by name and by its signatures; it passes the rest to the network.
_FACTORY = frozenset(
    {"features_only", "out_indices", "feature_cls", "pruned", "device", "dtype"}
    | {
        name
        for factory in (timm.create_model, build_model_with_cfg)
        for name, parameter in signature(factory).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    }
)


def create_backbone(
    backbone: str, args: Mapping[str, Any], *, meta: bool = False, weights: str = ""
) -> nn.Module:
    """A timm model by name.

    Args:
        backbone: name of the model.
        args: keyword arguments of the network itself.
        meta: on the meta device, for its shapes only.
        weights: a file of weights in timm's keys, safetensors or a torch checkpoint; `PRETRAINED`
            for timm's own, which may be downloaded; empty for timm's initialisation. As in timm, a
            classifier for another number of classes is initialised, and the first convolution is
            adapted to the number of channels.

    Raises:
        SettingError: timm does not know the model, does not take these arguments, or has or finds
            no such weights; or an argument is not the network's own.
    """
    check_backbone_args(args)
    with torch.device("meta") if meta else nullcontext():
        model = create_model(backbone, args)
    if weights and not meta:
        load_pretrained_weights(model, weights)
    return model


def check_backbone_args(args: Mapping[str, Any]) -> None:
    """Raise `SettingError` for arguments of timm's factory, such as a checkpoint to load."""
    for name in sorted(_FACTORY & set(args)):
        raise SettingError(
            f"backbone_args.{name}",
            args[name],
            "arguments of the network itself, such as layers and channels; remove it",
        )


def create_model(backbone: str, args: Mapping[str, Any]) -> nn.Module:
    """A timm model by name with any arguments of ``timm.create_model``, such as a device.

    Raises:
        SettingError: timm does not know the model, or does not take these arguments.
    """
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone.split('.')[0]}*")[:5]
        hint = f" (near: {', '.join(near)})" if near else ""
        raise SettingError("backbone", backbone, f"a model that timm knows{hint}")
    with refusing(backbone, args):
        model: nn.Module = timm.create_model(backbone, pretrained=False, **args)
    return model


@contextmanager
def refusing(backbone: str, args: Mapping[str, Any]) -> Iterator[None]:
    """Raise `SettingError` instead of whatever timm and torch raise over arguments of a network."""
    try:
        yield
    except SettingError:
        raise
    except _IMPOSSIBLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            "backbone_args", dict(args), f"arguments of {backbone} ({reason})"
        ) from None


def load_pretrained_weights(model: nn.Module, weights: str) -> None:
    """Load weights into a timm model, see `create_backbone`.

    Raises:
        SettingError: they are missing, unreadable or another model's.
    """
    known = dict(pretrained_cfg(model))
    allowed = "a file of this model's weights, or timm for timm's own"
    try:
        if weights != PRETRAINED:
            known = _from_file(model, known, weights)
        elif not any(known.get(key) for key in ("url", "hf_hub_id", "file")):
            raise SettingError("weights", weights, "a file; timm has no weights of this model")
        own = model.state_dict()
        load_pretrained(
            model,
            pretrained_cfg=known,
            num_classes=own[f"{known['classifier']}.weight"].shape[0],
            in_chans=own[f"{known['first_conv']}.weight"].shape[1],
        )
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingError("weights", weights, f"{allowed} ({reason})") from None


def _from_file(model: nn.Module, known: Mapping[str, Any], path: str) -> dict[str, Any]:
    """timm's config for the weights in a file; only tensors are unpickled."""
    if not Path(path).is_file():
        raise OSError("no such file")
    state = load_state_dict(path, weights_only=True)
    head = f"{known['classifier']}.weight"
    needed = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    # timm would tolerate missing weights beside another classifier.
    if absent := sorted(needed - set(state)):
        raise LookupError(f"{len(absent)} weights are missing, such as {absent[0]}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TypeError("not all entries are tensors")
    channels = state[f"{known['first_conv']}.weight"].shape[1]
    _, *sides = known.get("input_size") or (3, 224, 224)
    own = {"num_classes": state[head].shape[0], "input_size": (channels, *sides)}
    return {**known, "state_dict": state, **own}


def pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    """timm's config of a model: input size, names of the first convolution and classifier."""
    found: Any = model.pretrained_cfg
    return dict(found)
