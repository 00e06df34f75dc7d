"""Loss and accuracy of a network on images."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from octnas.data.images import Batch


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """Mean cross-entropy and top-1 accuracy (0 to 1) over all images, in eval mode.

    The model's training mode is left as it was.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    for images, labels in batches:
        logits = model(images.to(device, non_blocking=True)).float()
        targets = labels.to(device, non_blocking=True)
        loss += F.cross_entropy(logits, targets, reduction="sum").double()
        correct += (logits.argmax(dim=1) == targets).sum()
        count += len(labels)
    model.train(was_training)
    return {"loss": float(loss) / count, "top1": float(correct) / count}
