"""timm models by name, the plain networks that octave networks are made from."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import nn

from octnas.errors import SettingError


def create_backbone(backbone: str, args: Mapping[str, Any], *, meta: bool = False) -> nn.Module:
    """A timm model by name, with timm's initialisation; on the meta device for its shapes alone.

    Raises:
        SettingError: timm knows no such model, or does not take these arguments.
    """
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone.split('.')[0]}*")[:5]
        hint = f" (near: {', '.join(near)})" if near else ""
        raise SettingError("backbone", backbone, f"a model that timm knows{hint}")
    try:
        with torch.device("meta") if meta else nullcontext():
            model: nn.Module = timm.create_model(backbone, pretrained=False, **args)
    except SettingError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            "backbone_args", dict(args), f"what {backbone} takes: {reason}"
        ) from None
    return model


def pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    """What timm states for a model: input size, names of the first convolution and classifier."""
    found: Any = model.pretrained_cfg
    return dict(found)
