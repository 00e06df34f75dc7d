"""Memory that a network keeps for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

HEAD = "head"


def kept_for_backward(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Bytes that autograd holds after a forward pass, parameters and buffers left out.

    Args:
        model: a timm ResNet in training mode, octave or plain.
        images: ``(N, C, H, W)``.

    Returns:
        Bytes by part of the network: ``"stem"``, the stages by name, ``"head"``. Every storage
        counts once, for the part that kept it first.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    # Held on to, so that no storage's address is used again.
    seen: dict[int, Tensor] = {}
    kept: dict[str, int] = {}
    part = "stem"

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object) -> None:
            nonlocal part
            part = name

        return hook

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor
            kept[part] = kept.get(part, 0) + storage.nbytes()
        return tensor

    parts = [(n, m) for n, m in model.named_children() if n.startswith("layer")]
    parts += [(HEAD, m) for n, m in model.named_children() if n == "global_pool"]
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in parts]
    try:
        with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return kept
