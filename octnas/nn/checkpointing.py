"""Gradient checkpoints, as far as octave feature maps can pass them."""

import torch
from timm.layers import use_reentrant_ckpt
from torch import nn

from octnas.errors import UnsupportedModelError
from octnas.nn.conv import OctaveConv2d


def refuse_reentrant(model: nn.Module, _inputs: object = None) -> None:
    """Refuse reentrant checkpoints around octave feature maps; a forward pre-hook.

    They see tensors alone: a block whose input is an octave tensor would learn nothing, nor would
    what comes before it, without a word. The others, timm's default, are right.

    Raises:
        UnsupportedModelError: the model is about to use them.
    """
    asked = getattr(model, "grad_checkpointing", False) and use_reentrant_ckpt()
    if not asked or not torch.is_grad_enabled():
        return
    convs = (module for module in model.modules() if isinstance(module, OctaveConv2d))
    if any(conv.low_channels for conv in convs):
        raise UnsupportedModelError(
            "reentrant gradient checkpoints lose the gradients of octave feature maps; call "
            "timm.layers.set_reentrant_ckpt(False)"
        )
