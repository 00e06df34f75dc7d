"""Scores of candidates: a trained supernet, BN statistics of the candidate, loss on a part."""

import math
from collections.abc import Mapping
from itertools import islice

import torch
from torch import nn

from octnas.data.images import Batch, Data, Images, open_images
from octnas.device import choose_device
from octnas.errors import TrainingError
from octnas.nn.calibration import recalibrate
from octnas.nn.supernet import TrainedSupernet, activate
from octnas.training.evaluate import evaluate


class Scorer:
    """Scores architectures with a supernet's weights.

    Calling it with α by site returns ``loss`` and ``top1`` on one part of the data, after the
    batch-norm statistics were averaged anew over some training batches.

    Args:
        supernet: trained; this object changes its active architecture and BN statistics.
        images: BN statistics come from shuffled training batches, as in a training of its own.
        part: ``"rank"`` or ``"read"``; held in memory.
        calibration_batches: training batches for the BN statistics.
        batch_size: of these and of scoring.
        device: where to compute.
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
    ) -> None:
        self._supernet = supernet.to(device)
        self._device = device
        self._batches: list[Batch] = [*images.batches(part, batch_size)]
        training = images.train_batches(min(batch_size, images.count("train")), seed=0)
        batches = training.epoch(0)
        self._calibration = [some.to(device) for some, _ in islice(batches, calibration_batches)]

    def __call__(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Loss and top-1 accuracy (0 to 1) of α by site.

        Raises:
            TrainingError: the loss is no number.
        """
        activate(self._supernet, alphas)
        recalibrate(self._supernet, self._calibration)
        found = evaluate(self._supernet, self._batches, self._device)
        if not math.isfinite(found["loss"]):
            raise TrainingError(
                f"the supernet's loss for an architecture is {found['loss']}; train it anew with "
                "a lower supernet.recipe.lr or with supernet.recipe.clip_grad"
            )
        return found


def make_scorer(
    trained: TrainedSupernet,
    data: Data,
    part: str,
    *,
    calibration_batches: int,
    batch_size: int,
    device: str,
    threads: int,
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
    )
