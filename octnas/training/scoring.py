"""Scores of candidates: a trained supernet, BN statistics of the candidate, loss on a part.

Loss and accuracy of a network on images.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.data.batches import Batch
from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, device_errors
from octnas.errors import TrainingError
from octnas.nn.supernet import TrainedSupernet, activate, recalibrate

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


class Scorer:
    """Scores architectures with a supernet's weights.

    Calling it with α by site returns ``loss`` and ``top1`` on one part of the data, after the
    batch-norm statistics were averaged anew over some training batches.

    Args:
        supernet: trained; this object changes its active architecture and BN statistics.
        images: BN statistics come from shuffled training batches, as in a training of its own.
        part: ``"search_val"`` or ``"read"``; held in memory.
        calibration_batches: training batches for the BN statistics.
        batch_size: of these and of scoring.
        device: where to compute.
        first: share of the part, drawn evenly, that is scored before the rest.
    """

    def __init__(
        self,
        supernet: nn.Module,
        images: Images,
        part: str,
        *,
        calibration_batches: int,
        batch_size: int,
        device: torch.device,
        first: float = 1.0,
    ) -> None:
        self._supernet = supernet.to(device)
        self._device = device
        scored = [*images.batches(part, batch_size)]
        order = torch.randperm(images.count(part), generator=torch.Generator().manual_seed(0))
        self._first, self._rest = _divided(scored, order, first)
        self._share = sum(len(labels) for _, labels in self._first) / len(order)
        half = len(order) // 2
        # In the order in which the images are scored: that of the part, or the drawn one.
        self._half = (torch.arange(half) if self._rest else order[:half]).to(device)
        training = images.train_batches(min(batch_size, images.count("train")), seed=0)
        batches = training.epoch(0)
        self._calibration = [some.to(device) for some, _ in islice(batches, calibration_batches)]

    def __call__(self, alphas: Mapping[str, float], limit: float = math.inf) -> dict[str, float]:
        """Loss and top-1 accuracy (0 to 1) of α by site.

        Args:
            alphas: by site.
            limit: a loss on the first images above which the others are left out.

        Returns:
            Besides, where all images were scored, ``half_loss`` on one half of them, drawn evenly;
            where some images come first, their ``first_loss`` and the ``share`` of all images that
            were scored.

        Raises:
            TrainingError: the loss is no number.
            DeviceError: the device has failed; memory that is too small for this candidate is
                torch's own error.
        """
        try:
            return self._scored(alphas, limit)
        except torch.AcceleratorError:
            # Not the candidate's fault: whatever this process asks of the device fails from now on.
            with device_errors():
                raise

    def _scored(self, alphas: Mapping[str, float], limit: float) -> dict[str, float]:
        activate(self._supernet, alphas)
        recalibrate(self._supernet, self._calibration)
        first = judge(self._supernet, self._first, self._device)
        loss, correct = first.loss, first.correct
        extra: dict[str, float] = {}
        if self._rest:
            extra = {"first_loss": float(loss.mean()), "share": self._share}
            if extra["first_loss"] <= limit:
                rest = judge(self._supernet, self._rest, self._device)
                loss = torch.cat([loss, rest.loss])
                correct = torch.cat([correct, rest.correct])
                extra["share"] = 1.0
        found = {"loss": float(loss.mean()), "top1": float(correct.double().mean())} | extra
        if extra.get("share", 1.0) == 1.0 and len(self._half):
            found["half_loss"] = float(loss[self._half].mean())
        if not math.isfinite(found["loss"]):
            raise TrainingError(
                f"the supernet's loss for an architecture is {found['loss']}; train it anew with "
                "a lower supernet.recipe.lr or with supernet.recipe.clip_grad"
            )
        return found


def _divided(
    batches: list[Batch], order: torch.Tensor, share: float
) -> tuple[list[Batch], list[Batch]]:
    """Batches of as many images each; the first of the images by an order, and the rest."""
    if share == 1:
        return batches, []
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    size, count = len(batches[0][0]), max(1, round(share * len(labels)))
    return tuple(  # type: ignore[return-value]
        [(images[some], labels[some]) for some in part.split(size)]
        for part in (order[:count], order[count:])
    )


def make_scorer(
    trained: TrainedSupernet,
    data: Data,
    part: str,
    *,
    calibration_batches: int,
    batch_size: int,
    device: str,
    threads: int,
    first: float = 1.0,
) -> Scorer:
    """A scorer from files and settings alone, so that any process can make its own.

    Sets the CPU threads of this process: they are part of a score's last digits.
    """
    torch.set_num_threads(threads)
    place = choose_device(device)
    return Scorer(
        trained.load(),
        open_images(data, trained.space.input_size, place),
        part,
        calibration_batches=calibration_batches,
        batch_size=batch_size,
        device=place,
        first=first,
    )
