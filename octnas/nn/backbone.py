"""timm models by name, the plain networks that octave networks are made from."""

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

from octnas.errors import SettingError, require
from octnas.settings import PRETRAINED
from octnas.space.architecture import MOST

# What torch, safetensors and timm raise over a file that holds something else, or nothing whole.
_UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    EOFError,
    UnpicklingError,
    SafetensorError,
    struct.error,
)

# What timm and torch raise over arguments that make no network.
_NOT_TAKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# What timm's factory takes beside its signatures: it hands on the rest to the network.
_FACTORY = frozenset(
    {"features_only", "out_indices", "feature_cls", "pruned", "device", "dtype"}
    | {
        name
        for factory in (timm.create_model, build_model_with_cfg)
        for name, parameter in signature(factory).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    }
)

# More blocks in a stage than any network has (ResNet-1202 has 200), fewer than take minutes.
_STAGES, _BLOCKS = 4, 256
_WIDTHS = ("channels", "stem_width", "base_width", "cardinality")
# One number each; ImageNet-21k has 21,841 classes.
_ENDS = ("num_classes", "in_chans")


def create_backbone(
    backbone: str, args: Mapping[str, Any], *, meta: bool = False, weights: str = ""
) -> nn.Module:
    """A timm model by name.

    Args:
        backbone: name of the model.
        args: keyword arguments for ``timm.create_model`` that are the network's own.
        meta: on the meta device, for its shapes alone.
        weights: a file of weights in timm's keys, safetensors or a checkpoint of torch's;
            `PRETRAINED` for timm's own, which may be downloaded; empty for timm's initialisation.
            As timm has it, a classifier of another number of classes is initialised anew, and a
            first convolution fitted to the channels of the images.

    Raises:
        SettingError: timm knows no such model, does not take these arguments, or has or finds no
            such weights; or an argument is none of the network's, or beyond all networks.
    """
    check_backbone_args(args)
    with torch.device("meta") if meta else nullcontext():
        model = create_model(backbone, args)
    if weights and not meta:
        load_pretrained_weights(model, weights)
    return model


def check_backbone_args(args: Mapping[str, Any]) -> None:
    """Refuse what is timm's factory's, such as a checkpoint to load, and networks beyond all size.

    Files may be anybody's, and what is in them is made before it is looked at.

    Raises:
        SettingError: naming the argument.
    """
    for name in sorted(_FACTORY & set(args)):
        raise SettingError(
            f"backbone_args.{name}",
            args[name],
            "what makes the network, such as layers and channels; leave it out",
        )
    for name, value in args.items():
        _check_size(name, value)


def _check_size(name: str, value: Any) -> None:
    """Refuse an argument by which a network would be beyond all size."""
    if name == "layers":
        most, allowed = _BLOCKS, f"at most {_STAGES} stages of {_BLOCKS} blocks"
    elif name in _WIDTHS:
        most, allowed = MOST, f"at most {MOST}, of {_STAGES} stages at most"
    elif name in _ENDS:
        most, allowed = MOST, f"at most {MOST}"
    else:
        return
    counts = value if isinstance(value, list | tuple) else (value,)
    # What is no number at all timm refuses.
    large = any(isinstance(count, int | float) and count > most for count in counts)
    require(not large and len(counts) <= _STAGES, f"backbone_args.{name}", value, allowed)


def create_model(backbone: str, args: Mapping[str, Any]) -> nn.Module:
    """A timm model by name with any arguments of ``timm.create_model``, a device too.

    Raises:
        SettingError: timm knows no such model, or does not take these arguments.
    """
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone.split('.')[0]}*")[:5]
        hint = f" (near: {', '.join(near)})" if near else ""
        raise SettingError("backbone", backbone, f"a model that timm knows{hint}")
    with taking(backbone, args):
        model: nn.Module = timm.create_model(backbone, pretrained=False, **args)
    return model


@contextmanager
def taking(backbone: str, args: Mapping[str, Any]) -> Iterator[None]:
    """One clear line where timm makes no network of arguments, or one that computes nothing.

    Raises:
        SettingError: in the place of whatever timm and torch raise.
    """
    try:
        yield
    except SettingError:
        raise
    except _NOT_TAKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            "backbone_args", dict(args), f"what {backbone} takes: {reason}"
        ) from None


def load_pretrained_weights(model: nn.Module, weights: str) -> None:
    """Put weights into a timm model, see `create_backbone`.

    Raises:
        SettingError: they cannot be had, or are another model's.
    """
    known = dict(pretrained_cfg(model))
    allowed = "a file of the model's weights, or timm for those that timm has"
    try:
        if weights != PRETRAINED:
            known = _from_file(model, known, weights)
        elif not any(known.get(key) for key in ("url", "hf_hub_id", "file")):
            raise SettingError("weights", weights, "a file; timm has no weights of this model")
        first, head = _module(model, known["first_conv"]), _module(model, known["classifier"])
        load_pretrained(
            model,
            pretrained_cfg=known,
            num_classes=head.weight.shape[0],
            in_chans=first.weight.shape[1],
        )
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingError("weights", weights, f"{allowed} ({reason})") from None


def _from_file(model: nn.Module, known: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What timm is told of the weights in a file; only tensors are unpickled."""
    if not Path(path).is_file():
        raise OSError("no such file")
    state = load_state_dict(path, weights_only=True)
    head = f"{known['classifier']}.weight"
    needed = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    # timm takes what there is where the classifier is another one.
    if absent := sorted(needed - set(state)):
        raise LookupError(f"{len(absent)} weights are missing, such as {absent[0]}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TypeError("not all that it holds are tensors")
    return {**known, "state_dict": state, "num_classes": state[head].shape[0]}


def _module(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    """What timm states for a model: input size, names of the first convolution and classifier."""
    found: Any = model.pretrained_cfg
    return dict(found)
