"""Evaluation of networks, and scores of candidates with weights that are trained already."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.data.batches import Batch, TrainingBatches
from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, device_errors
from octnas.errors import TrainingError, require
from octnas.nn.conv import to_channels_last
from octnas.nn.supernet import ConvertedNetwork, TrainedSupernet, activate, recalibrate
from octnas.training.loop import Step, Teacher, distilled, frozen, train
from octnas.training.settings import FINE_TUNE_RECIPE, DistillationSettings, Recipe

_TOP = 5

Measure = Literal["loss", "kl"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """A network's predictions, one per image.

    Attributes:
        loss: cross-entropy, or KL divergence from another network, shape ``(images,)``, float64.
        target: true class, int64.
        predicted: class of the largest logit, int64.
        in_top5: whether the true class is among the five largest logits, bool.
    """

    loss: Tensor
    target: Tensor
    predicted: Tensor
    in_top5: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether the largest logit is that of the true class, bool."""
        return self.predicted == self.target

    @property
    def metrics(self) -> dict[str, float]:
        """Means over all images: ``loss``, ``top1`` and ``top5`` (0 to 1)."""
        return {
            "loss": float(self.loss.mean()),
            "top1": float(self.correct.double().mean()),
            "top5": float(self.in_top5.double().mean()),
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """Compact tensors on the CPU, for a safetensors file."""
        return {
            "loss": self.loss.float().cpu(),
            "target": self.target.int().cpu(),
            "predicted": self.predicted.int().cpu(),
            "in_top5": self.in_top5.cpu(),
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    other: Sequence[Tensor] = (),
) -> Predictions:
    """Evaluate a network in eval mode; its training mode is restored afterwards.

    Args:
        model: on the device.
        batches: of images and labels.
        device: where to compute.
        other: another network's logits for each batch, ``(n, classes)``; the loss is then the KL
            divergence of the model's probabilities from that network's.
    """
    was_training = model.training
    model.eval()
    rows: list[tuple[Tensor, ...]] = []
    for number, (images, labels) in enumerate(batches):
        logits = model(images.to(device, non_blocking=True)).float()
        targets = labels.to(device, non_blocking=True)
        best = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices
        if other:
            loss = divergence(logits, other[number])
        else:
            loss = F.cross_entropy(logits, targets, reduction="none").double()
        rows.append(
            (
                loss,
                targets,
                logits.argmax(dim=1),
                (best == targets[:, None]).any(dim=1),
            )
        )
    model.train(was_training)
    return Predictions(*map(torch.cat, zip(*rows, strict=True)))


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(other ‖ model) of the probabilities of two networks, in nats: ``(images,)``, float64."""
    found, known = (one.double().log_softmax(dim=1) for one in (logits, other))
    return F.kl_div(found, known, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class _Lessons:
    """The batches of a short training, and the original's logits for each: one epoch."""

    batches: Sequence[Batch]
    logits: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        """See `octnas.data.batches.TrainingBatches.epoch`."""
        return islice(self.batches, start, None)

    def teach(self, model: nn.Module, batch_size: int, device: torch.device) -> None:
        """Train a network in place; see `SearchSettings.steps` for the recipe."""
        share = batch_size / FINE_TUNE_RECIPE.batch_size
        recipe = replace(
            FINE_TUNE_RECIPE,
            epochs=1,
            batch_size=batch_size,
            lr=FINE_TUNE_RECIPE.lr * share,
            warmup_epochs=0.0,
        )

        def backward(step: Step) -> Tensor:
            return distilled(lambda _: self.logits[step.number], DistillationSettings())(step)

        train(model, self, recipe, device=device, backward=backward)


class Scorer:
    """Scores architectures on one part of the data, with a trained network's weights.

    Each score re-estimates the batch-norm statistics of the architecture first.

    Args:
        supernet: trained; its active architecture and batch-norm statistics are changed.
        images: batch-norm statistics come from shuffled training batches.
        part: ``"search_val"`` or ``"read"``; held in memory.
        calibration_batches: number of training batches for the batch-norm statistics.
        batch_size: for calibration and scoring.
        device: where to compute.
        first: share of the part, drawn at random, that is scored before the rest.
        activate: makes an architecture active in the supernet, or converts a trained network to it.
        original: the network that a run begins with.
        measure: ``"loss"``, the cross-entropy, or ``"kl"``, the divergence from the original.
        steps: of training before each score, taught by the original; see `SearchSettings.steps`.
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
        activate: Callable[[nn.Module, Mapping[str, float]], None] = activate,
        original: Teacher | None = None,
        measure: Measure = "loss",
        steps: int = 0,
    ) -> None:
        fits = original is not None or (measure == "loss" and steps == 0)
        require(fits, "original", original, "only measure: loss and steps: 0 without an original")
        self._activate = activate
        self._supernet, self._device = supernet.to(device), device
        if device.type == "cpu":
            # Convolutions of large images are faster, and not slower of small ones.
            to_channels_last(self._supernet)
        order = torch.randperm(images.count(part), generator=torch.Generator().manual_seed(0))
        self._first, self._rest = _split([*images.batches(part, batch_size)], order, first)
        self._share = sum(len(labels) for _, labels in self._first) / len(order)
        half = len(order) // 2
        # Positions of a random half, in the order in which the images are scored.
        self._half = (torch.arange(half) if self._rest else order[:half]).to(device)
        self._batch_size = min(batch_size, images.count("train"))
        training = images.train_batches(self._batch_size, seed=0)
        batches = islice(training.epoch(0), calibration_batches)
        self._calibration = [some.to(device) for some, _ in batches]
        self._first_known: list[Tensor] = []
        self._rest_known: list[Tensor] = []
        self._lessons: _Lessons | None = None
        if original is not None and measure == "kl":
            self._first_known = _logits(original, self._first, device)
            self._rest_known = _logits(original, self._rest, device)
        if original is not None and steps:
            # Not the images of the calibration.
            shown = [*islice(_epochs(training, start=1), steps)]
            self._lessons = _Lessons(shown, _logits(original, shown, device))
            self._before = copy.deepcopy(self._supernet.state_dict())

    def __call__(self, alphas: Mapping[str, float], limit: float = math.inf) -> dict[str, float]:
        """Score one architecture.

        Args:
            alphas: by site.
            limit: the rest of the images is skipped if the loss on the first ones exceeds it.

        Returns:
            ``loss``, as measured, and ``top1`` (0 to 1) over the scored images; if the whole part
            was scored, ``half_loss`` over a random half of it; with ``first`` below 1 also
            ``first_loss`` and the ``share`` of the part that was scored.

        Raises:
            TrainingError: the loss is not finite.
            DeviceError: the device has failed. Out of memory stays torch's own error.
        """
        try:
            return self._scored(alphas, limit)
        except torch.AcceleratorError:
            # Not the candidate's fault: the device fails for every later call of this process.
            with device_errors():
                raise

    def _scored(self, alphas: Mapping[str, float], limit: float) -> dict[str, float]:
        if self._lessons is not None:
            self._supernet.load_state_dict(self._before)
        self._activate(self._supernet, alphas)
        if self._lessons is not None:
            self._lessons.teach(self._supernet, self._batch_size, self._device)
        recalibrate(self._supernet, self._calibration)
        first = evaluate(self._supernet, self._first, self._device, self._first_known)
        loss, correct, share = first.loss, first.correct, self._share
        extra: dict[str, float] = {}
        if self._rest:
            extra["first_loss"] = float(loss.mean())
            if extra["first_loss"] <= limit:
                rest = evaluate(self._supernet, self._rest, self._device, self._rest_known)
                loss, correct = torch.cat([loss, rest.loss]), torch.cat([correct, rest.correct])
                share = 1.0
            extra["share"] = share
        if share == 1 and len(self._half):
            extra["half_loss"] = float(loss[self._half].mean())
        found = {"loss": float(loss.mean()), "top1": float(correct.double().mean()), **extra}
        if not math.isfinite(found["loss"]):
            raise TrainingError(
                f"the loss of an architecture is {found['loss']}; train the supernet with a lower "
                "supernet.recipe.lr or with supernet.recipe.clip_grad, or check the weights that "
                "the run began with"
            )
        return found


def _split(batches: list[Batch], order: Tensor, share: float) -> tuple[list[Batch], list[Batch]]:
    """Batches of the first images in an order, and of the others."""
    if share == 1:
        return batches, []
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    size, count = len(batches[0][0]), max(1, round(share * len(labels)))
    return tuple(  # type: ignore[return-value]
        [(images[some], labels[some]) for some in part.split(size)]
        for part in (order[:count], order[count:])
    )


def _logits(network: Teacher, batches: Iterable[Batch], device: torch.device) -> list[Tensor]:
    """A network's logits for each batch, on the device."""
    return [network(images.to(device)) for images, _ in batches]


def _epochs(batches: TrainingBatches, start: int) -> Iterator[Batch]:
    """The batches of one epoch after another."""
    return chain.from_iterable(batches.epoch(number) for number in count(start))


def make_scorer(
    trained: TrainedSupernet | ConvertedNetwork,
    data: Data,
    part: str,
    *,
    device: str,
    threads: int,
    original: ConvertedNetwork | None = None,
    **settings: Any,
) -> Scorer:
    """A `Scorer` from picklable values, for any process.

    Sets the CPU threads of this process, since they change the last digits of a score.
    """
    torch.set_num_threads(threads)
    place = choose_device(device)
    images = open_images(data, trained.space.input_size, place)
    return Scorer(
        trained.load(),
        images,
        part,
        device=place,
        activate=trained.activate,
        original=frozen(original.load(), Recipe(), place) if original else None,
        **settings,
    )
