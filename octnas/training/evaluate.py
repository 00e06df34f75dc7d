"""Loss and accuracy of a network on images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.data.batches import Batch

_TOP = 5


@dataclass(frozen=True, eq=False)
class Judged:
    """What a network makes of some images, one by one.

    Attributes:
        loss: cross-entropy of each, shape ``(images,)``, float64.
        target: its class, int64.
        predicted: the class of the largest logit, int64.
        in_top5: whether the class is among the five largest, bool.
    """

    loss: Tensor
    target: Tensor
    predicted: Tensor
    in_top5: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether the class was found, shape ``(images,)``, bool."""
        return self.predicted == self.target

    @property
    def metrics(self) -> dict[str, float]:
        """``loss``, ``top1`` and ``top5`` (0 to 1) over all images."""
        return {
            "loss": float(self.loss.mean()),
            "top1": float(self.correct.double().mean()),
            "top5": float(self.in_top5.double().mean()),
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """As a safetensors file holds it, on the CPU and small."""
        return {
            "loss": self.loss.float().cpu(),
            "target": self.target.int().cpu(),
            "predicted": self.predicted.int().cpu(),
            "in_top5": self.in_top5.cpu(),
        }


@torch.inference_mode()
def judge(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Judged:
    """Look at images one by one, in eval mode; the model's training mode is left as it was."""
    was_training = model.training
    model.eval()
    rows: list[tuple[Tensor, ...]] = []
    for images, labels in batches:
        logits = model(images.to(device, non_blocking=True)).float()
        targets = labels.to(device, non_blocking=True)
        best = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices
        rows.append(
            (
                F.cross_entropy(logits, targets, reduction="none").double(),
                targets,
                logits.argmax(dim=1),
                (best == targets[:, None]).any(dim=1),
            )
        )
    model.train(was_training)
    return Judged(*map(torch.cat, zip(*rows, strict=True)))


def evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """Mean cross-entropy and top-1 accuracy (0 to 1) over all images, in eval mode."""
    metrics = judge(model, batches, device).metrics
    return {name: metrics[name] for name in ("loss", "top1")}
