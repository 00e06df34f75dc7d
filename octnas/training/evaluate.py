"""Loss and accuracy of a network on images."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from octnas.data.images import Batch


@torch.inference_mode()
def losses(
    model: nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each image and whether its class was found, in eval mode.

    The model's training mode is left as it was.

    Returns:
        Two tensors of shape ``(images,)``, float64 and bool, on the device.
    """
    was_training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    for images, labels in batches:
        logits = model(images.to(device, non_blocking=True)).float()
        targets = labels.to(device, non_blocking=True)
        found.append(F.cross_entropy(logits, targets, reduction="none").double())
        correct.append(logits.argmax(dim=1) == targets)
    model.train(was_training)
    return torch.cat(found), torch.cat(correct)


def evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """Mean cross-entropy and top-1 accuracy (0 to 1) over all images, in eval mode."""
    return means(*losses(model, batches, device))


def means(loss: torch.Tensor, correct: torch.Tensor) -> dict[str, float]:
    """``loss`` and ``top1`` of what `losses` returned."""
    return {"loss": float(loss.mean()), "top1": float(correct.double().mean())}
